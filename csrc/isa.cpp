// The kernels for one instruction set. This file is compiled once for each; NORMKIT_ISA names the function at its end.
#include "walk/columns.h"
#include "walk/columns_backward.h"
#include "walk/rows.h"
#include "walk/rows_backward.h"
#include "walk/slabs.h"

namespace normkit {
namespace {

template <class S, class T> void forward_as(const View& whole, const Forward& call, const Pool& threads) {
  each_slab<S>(whole, call, threads, [](const View& v, const Forward& f, const Pool& pool) {
    if (v.columns) ColumnsForward<S, T>(v, f, pool).run();
    else RowsForward<S, T>(v, f, pool).run();
  });
}
template <class S, class T> void backward_as(const View& whole, const Backward& call, const Pool& threads) {
  each_slab<S>(whole, call, threads, [](const View& v, const Backward& f, const Pool& pool) {
    if (v.columns) ColumnsBackward<S, T>(v, f, pool).run();
    else RowsBackward<S, T>(v, f, pool).run();
  });
}

// Where loops see floats, both kinds of half precision share one walk. With a gate or a skip every step is in the
// arithmetic type.
template <class S> using InFloats = typename std::conditional<sizeof(S) == 2, half, S>::type;
bool is_wide(const Fusion* f) { return f && (f->gate || f->skip || f->dskip); }
template <class S> void forward_in(const View& v, const Forward& f, const Pool& pool) {
  if constexpr (PACKED<S>) {
    if (!is_wide(f.fused)) return forward_as<S, S>(v, f, pool);
  }
  forward_as<InFloats<S>, arithmetic<S>>(v, f, pool);
}
template <class S> void backward_in(const View& v, const Backward& f, const Pool& pool) {
  if constexpr (PACKED<S>) {
    if (!is_wide(f.fused)) return backward_as<S, S>(v, f, pool);
  }
  backward_as<InFloats<S>, arithmetic<S>>(v, f, pool);
}
View stored_as(Storage s, View v) {
  v.storage = s;
  return v;
}

// With instructions for bfloat16, the kernels of all other types are those without them.
#ifdef __AVX512BF16__
void forward(Storage s, const View& v, const Forward& f, const Pool& pool) {
  s == Storage::bf16 ? forward_in<bf16>(stored_as(s, v), f, pool) : kernels_avx512()->forward(s, v, f, pool);
}
void backward(Storage s, const View& v, const Backward& f, const Pool& pool) {
  s == Storage::bf16 ? backward_in<bf16>(stored_as(s, v), f, pool) : kernels_avx512()->backward(s, v, f, pool);
}
#else
void forward(Storage s, const View& view, const Forward& f, const Pool& pool) {
  const View v = stored_as(s, view);
  switch (s) {
    case Storage::f64: return forward_in<double>(v, f, pool);
    case Storage::f32: return forward_in<float>(v, f, pool);
    case Storage::bf16: return forward_in<bf16>(v, f, pool);
    case Storage::f16: return forward_in<f16>(v, f, pool);
  }
}
void backward(Storage s, const View& view, const Backward& f, const Pool& pool) {
  const View v = stored_as(s, view);
  switch (s) {
    case Storage::f64: return backward_in<double>(v, f, pool);
    case Storage::f32: return backward_in<float>(v, f, pool);
    case Storage::bf16: return backward_in<bf16>(v, f, pool);
    case Storage::f16: return backward_in<f16>(v, f, pool);
  }
}
#endif

}  // namespace

#define NORMKIT_JOIN(a, b) a##b
#define NORMKIT_NAME(isa) NORMKIT_JOIN(kernels_, isa)
#define NORMKIT_TEXT(isa) #isa
#define NORMKIT_STRING(isa) NORMKIT_TEXT(isa)

const Kernels* NORMKIT_NAME(NORMKIT_ISA)() {
  static const Kernels kernels = {NORMKIT_STRING(NORMKIT_ISA), forward, backward};
  return &kernels;
}

}  // namespace normkit
