// Running statistics move towards those of a batch.
#pragma once
#include <cmath>
#include <cstdint>

namespace {

// Channels that `move_running` has left alone so far; whoever wants to know compares before and after.
int64_t skipped_channels = 0;

// running = (1 - momentum) * running + momentum * batch, over `samples` rows of moments from `count` values each.
// A channel whose moments are not finite keeps what it has: one bad batch must not spoil every evaluation after it.
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
    if (!std::isfinite(m) || !std::isfinite(v)) {
      ++skipped_channels;
      continue;
    }
    running_mean[c] = B(double(running_mean[c]) + momentum * (m / double(samples) - double(running_mean[c])));
    running_var[c] = B(double(running_var[c]) + momentum * (v * unbiased - double(running_var[c])));
  }
}

}  // namespace
