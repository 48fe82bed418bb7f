// What a kernel is asked to do, in plain C++: no torch, so that each instruction set can be compiled separately.
#pragma once
#include <cstdint>

namespace normkit {

enum class Storage : int { f64 = 0, f32 = 1, bf16 = 2, f16 = 3 };

// The memory as four levels, outermost first: kept, reduced, kept, reduced. The weight of the element at
// `offset` is `offset / inner % period`. Of `slabs` > 1, equal parts of K0, each has a period of weights; `inner` then
// counts within its slab. In columns with K0 = 1 the slabs are parts of R0, so weights change within a
// region. With a `group` the rows of x lie apart (Gaps in block/gaps.h), one row to a cell.
struct View {
  int64_t k0, r0, k1, r1, period, inner;
  bool columns;
  int64_t slabs = 1, group = 0, pitch = 0, outer = 0;
  Storage storage = Storage::f32;  // of x, known when a call begins

  int64_t width() const { return k1 * r1; }
  int64_t numel() const { return k0 * r0 * k1 * r1; }
  int64_t cells() const { return k0 * k1; }
  int64_t count() const { return r0 * r1; }
  int64_t rows() const { return k0 * r0 * k1; }
  int64_t weights() const { return slabs * period; }
  bool has_slabs_in_regions() const { return slabs > 1 && k0 == 1 && columns; }
  int64_t cell_of_row(int64_t row) const { return k0 == 1 ? row % k1 : row / (r0 * k1) * k1 + row % k1; }
};

// A weight or bias as it is stored, whatever the type of x; null where absent.
struct Parameter {
  const void* data = nullptr;
  Storage storage = Storage::f32;
};

// The last one, 1 + g, is only for gates; a gate without an activation is the factor itself.
enum class Activation : int { none = 0, relu, leaky_relu, silu, gelu, gelu_tanh, sigmoid, tanh, plus_one };

// What is done in the same pass as a normalization. Forward: `residual`, of x's type, is added first; the sum is
// written to `sum`, and it is the x of backward. With `gate_first`, x is multiplied by f(gate) first. Else that factor
// is applied to z = x_hat * weight + bias; then `skip` is added, and the activation is applied last. Backward:
// `residual` is the gradient of the sum and is added to dx. `bias` is needed for z, and `skip` for the activation.
// `dgate` and `dskip`: null where not wanted; `dgate` with `gate_first` needs dx. gate, skip and their gradients are of
// x's type and size. `mask`: one byte for `channels` elements that lie `inner` apart, 0 where they are padding.
// `counts`: the number of valid elements in each cell.
struct Fusion {
  bool backward = false;
  Activation activation = Activation::none;
  const void* residual = nullptr;
  void* sum = nullptr;
  Parameter bias;
  const uint8_t* mask = nullptr;
  int64_t channels = 1, inner = 1;
  const double* counts = nullptr;
  const void *gate = nullptr, *skip = nullptr;
  Activation gate_activation = Activation::none;
  bool gate_first = false;
  void *dgate = nullptr, *dskip = nullptr;
};

// x, y: the storage type. mean, std: its arithmetic type (double for double, else float). Null where absent. With
// `fixed` the moments are given; else they are written, unless null. They hold the standard deviation and not the
// variance, because its range in fp32 is that of the data. With `zero_centered` 1 is added to the weight. With
// `cast_first` x_hat, its product with the weight, and the sum with the bias are each rounded to x's type.
struct Forward {
  const void* x;
  void* y;
  Parameter weight, bias;
  void* mean;
  void* std;
  double eps;
  bool center;
  bool fixed;
  bool length = false;  // divide by the Euclidean length of the cell; `std` is then that length, 1 where it is 0
  const Fusion* fused = nullptr;
  bool zero_centered = false, cast_first = false;
};

// dx, dweight, dbias: null where not wanted; the latter two in the arithmetic type.
struct Backward {
  const void* dy;
  const void* x;
  Parameter weight;
  const void* mean;
  const void* std;
  void* dx;
  void* dweight;
  void* dbias;
  double eps;
  bool center;
  bool fixed;
  bool length = false;
  const Fusion* fused = nullptr;
  bool zero_centered = false;
};

// Runs body(context, task) for every task below n, on torch's threads.
struct Pool {
  void (*run)(int64_t n, void (*body)(void*, int64_t), void* context);
  int threads;
};

struct Kernels {
  const char* isa;
  void (*forward)(Storage, const View&, const Forward&, const Pool&);
  void (*backward)(Storage, const View&, const Backward&, const Pool&);
};

const Kernels* kernels_baseline();
const Kernels* kernels_avx2();
const Kernels* kernels_avx512();
const Kernels* kernels_avx512_bf16();

}  // namespace normkit
