// The kernels without torch and without Python, so that they can run where neither does: calls from stdin, each carried
// out forward and backward, results to stdout. Every buffer ends at a page that may not be touched, so a read or a
// write past its end is a crash, and a pointer is as unaligned as the size makes it.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "kernel.h"

namespace {

using namespace normkit;

// As test_cross.py packs it.
struct Call {
  int64_t storage, k0, r0, k1, r1, period, inner, columns, center, fixed, weight, bias, threads;
  double eps;
};

class Guarded {
  size_t bytes_, all_;
  char* base_;

 public:
  explicit Guarded(int64_t bytes) : bytes_(size_t(bytes)) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    all_ = (bytes_ + page - 1) / page * page + page;
    void* p = mmap(nullptr, all_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(static_cast<char*>(p) + all_ - page, page, PROT_NONE)) std::abort();
    base_ = static_cast<char*>(p) + all_ - page - bytes_;
    std::memset(base_, 0xff, bytes_);  // NaN in every type: what a kernel leaves unwritten shows
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_ + bytes_ + size_t(sysconf(_SC_PAGESIZE)) - all_, all_); }
  void* data() { return base_; }
  void read() {
    if (std::fread(base_, 1, bytes_, stdin) != bytes_) std::abort();
  }
  void write() {
    if (std::fwrite(base_, 1, bytes_, stdout) != bytes_) std::abort();
  }
};

// One after the other for one thread, and backwards for several: no task may wait for another.
void in_order(int64_t n, void (*body)(void*, int64_t), void* context) {
  for (int64_t i = 0; i < n; ++i) body(context, i);
}
void backwards(int64_t n, void (*body)(void*, int64_t), void* context) {
  for (int64_t i = n; i-- > 0;) body(context, i);
}

void carry_out(const Call& c) {
  const View v{c.k0, c.r0, c.k1, c.r1, c.period, c.inner, c.columns != 0};
  const Storage storage = Storage(c.storage);
  const int64_t wide = storage == Storage::f64 ? 8 : 4, narrow = wide == 8 ? 8 : storage == Storage::f32 ? 4 : 2;
  const Pool pool{c.threads == 1 ? in_order : backwards, int(c.threads)};
  const bool center = c.center != 0, fixed = c.fixed != 0;

  Guarded x(v.numel() * narrow), dy(v.numel() * narrow), weight(c.weight ? c.period * wide : 0);
  Guarded bias(c.bias ? c.period * wide : 0), mean(center ? v.cells() * wide : 0), std(v.cells() * wide);
  x.read(), dy.read(), weight.read(), bias.read();
  if (fixed) mean.read(), std.read();
  Guarded y(v.numel() * narrow), dx(v.numel() * narrow), dweight(c.period * wide), dbias(c.period * wide);

  const Kernels& kernels = *kernels_baseline();
  const Storage arithmetic = storage == Storage::f64 ? Storage::f64 : Storage::f32;
  const Parameter w{c.weight ? weight.data() : nullptr, arithmetic}, b{c.bias ? bias.data() : nullptr, arithmetic};
  const Forward f{x.data(), y.data(), w, b, center ? mean.data() : nullptr, std.data(), c.eps, center, fixed};
  kernels.forward(storage, v, f, pool);
  if (!fixed) {  // inference asks for no moments, and gets the same y
    Guarded again(v.numel() * narrow);
    Forward bare = f;
    bare.y = again.data();
    bare.mean = bare.std = nullptr;
    kernels.forward(storage, v, bare, pool);
    if (std::memcmp(again.data(), y.data(), size_t(v.numel() * narrow))) std::abort();
  }
  const Backward g{dy.data(), x.data(), w, f.mean, f.std, dx.data(), dweight.data(), dbias.data(),
                   c.eps, center, fixed};
  kernels.backward(storage, v, g, pool);
  y.write(), mean.write(), std.write(), dx.write(), dweight.write(), dbias.write();
}

}  // namespace

int main() {
  for (Call c; std::fread(&c, sizeof c, 1, stdin) == 1;) carry_out(c);
  return std::fflush(stdout) != 0;
}
