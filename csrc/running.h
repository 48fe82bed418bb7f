// Running statistics move towards those of a batch.
#pragma once
#include <cmath>
#include <cstdint>

namespace {

// Channels that `move_running` has left alone so far; whoever wants to know compares before and after.
int64_t skipped_channels = 0;

// running = (1 - momentum) * running + momentum * batch, over `samples` rows of moments from `count` values each.
// A channel keeps what it has where the result would not be finite as it is stored: one bad batch must not spoil every
// evaluation after it.
template <class A, class B>
void move_running(B* running_mean, B* running_var, const A* mean, const A* dev, int64_t channels, int64_t samples,
                  double count, double momentum) {
  const double unbiased = count / (count - 1) / double(samples);
  for (int64_t c = 0; c < channels; ++c) {
    double m = 0, v = 0;
    for (int64_t s = 0; s < samples; ++s) {
      m += double(mean[s * channels + c]);
      v += double(dev[s * channels + c]) * double(dev[s * channels + c]);
    }
    const B new_mean = B(double(running_mean[c]) + momentum * (m / double(samples) - double(running_mean[c])));
    const B new_var = B(double(running_var[c]) + momentum * (v * unbiased - double(running_var[c])));
    if (!std::isfinite(new_mean) || !std::isfinite(new_var)) {
      ++skipped_channels;
      continue;
    }
    running_mean[c] = new_mean;
    running_var[c] = new_var;
  }
}

// std = sqrt(var + eps): eps first, because a stored variance may be slightly negative. In double, rounded once.
template <class T> void roots(const T* var, T* std, int64_t n, double eps) {
  for (int64_t i = 0; i < n; ++i) std[i] = T(std::sqrt(double(var[i]) + eps));
}

}  // namespace
