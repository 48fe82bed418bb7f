// Running statistics are updated with those of a batch.
#pragma once
#include <cmath>
#include <cstdint>

namespace {

// running = (1 - momentum) * running + momentum * batch, over `samples` rows of moments from `count` values each.
// Returns how many channels were skipped: a channel keeps its statistics where the new ones would not be finite as they
// are stored, because one bad batch must not spoil every evaluation after it.
template <class A, class B>
int64_t move_running(B* running_mean, B* running_var, const A* mean, const A* std, int64_t channels, int64_t samples,
                     double count, double momentum) {
  const double unbiased = count / (count - 1) / double(samples);
  int64_t skipped = 0;
  for (int64_t c = 0; c < channels; ++c) {
    double m = 0, v = 0;
    for (int64_t s = 0; s < samples; ++s) {
      m += double(mean[s * channels + c]);
      v += double(std[s * channels + c]) * double(std[s * channels + c]);
    }
    const B new_mean = B(double(running_mean[c]) + momentum * (m / double(samples) - double(running_mean[c])));
    const B new_var = B(double(running_var[c]) + momentum * (v * unbiased - double(running_var[c])));
    if (!std::isfinite(new_mean) || !std::isfinite(new_var)) {
      ++skipped;
      continue;
    }
    running_mean[c] = new_mean;
    running_var[c] = new_var;
  }
  return skipped;
}

// std = sqrt(var + eps): eps first, because a stored variance may be slightly negative. In double, rounded once.
template <class T> void roots(const T* var, T* std, int64_t n, double eps) {
  for (int64_t i = 0; i < n; ++i) std[i] = T(std::sqrt(double(var[i]) + eps));
}

}  // namespace
