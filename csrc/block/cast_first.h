// Weight and bias applied in half precision: x_hat, the product and the sum are each rounded to the type of x, as by
// torch's operators of that type.
#pragma once
#include "block/mask.h"
#include "vector/pack.h"

namespace {

// Whether results of half precision in the arithmetic type have to be rounded before fusion goes on with them. Where
// loops see packs each store rounds, and else the last one does.
template <class T> bool rounds_before(const Fusion* f) {
  return !PACKED<T> && f && (f->activation != normkit::Activation::none || f->gate || f->skip);
}

// q = hat * w [+ b] for n elements, all in one loop. hat, w and b give an element as `Constant` and `Along` do.
template <class S, class T, class Hat, class W, class B>
ALWAYS_INLINE void apply_rounded_at_once(T* q, int64_t n, const Hat& hat, const W& w, const B& b) {
  if constexpr (!std::is_same<B, std::nullptr_t>::value)
    each<T>(0, n, [=](auto at) { at.put(q, stored<S>(stored<S>(hat(at)) * w(at)) + b(at)); });
  else
    each<T>(0, n, [=](auto at) { at.put(q, stored<S>(hat(at)) * w(at)); });
}
// Numbers in float16 are rounded by instructions for several at a time, which loops do not find.
template <class S, class T, class Hat, class W, class B>
ALWAYS_INLINE void apply_rounded(
    const Format<S>& format, T* q, int64_t n, bool finally, const Hat& hat, const W& w, const B& b) {
  if constexpr (PACKED<T>) {
    apply_rounded_at_once<S>(q, n, hat, w, b);
  } else {
    if (format.is_bf16) {
      apply_rounded_at_once<bf16>(q, n, hat, w, b);
    } else {
      each<T>(0, n, [=](auto at) { at.put(q, hat(at)); });
      format.round(q, n);
      each<T>(0, n, [=](auto at) { at.put(q, at(q) * w(at)); });
      if constexpr (!std::is_same<B, std::nullptr_t>::value) {
        format.round(q, n);
        each<T>(0, n, [=](auto at) { at.put(q, at(q) + b(at)); });
      }
    }
    if (finally) format.round(q, n);
  }
}

// The same with weight and bias along memory, where they are not null; else one weight, and one bias if `biased`.
template <class S, class T, class Hat, class A = arithmetic<S>>
OUT_OF_LINE void apply_rounded_along(
    const Format<S>& format, T* q, int64_t n, bool finally, const Hat& hat, const A* w, const A* b) {
  const auto with_bias = [&](const auto& weight) {
    if (b) apply_rounded(format, q, n, finally, hat, weight, Along<A>{b});
    else apply_rounded(format, q, n, finally, hat, weight, nullptr);
  };
  if (w) with_bias(Along<A>{w});
  else with_bias(Constant<A>{1});
}
template <class S, class T, class Hat, class A = arithmetic<S>>
OUT_OF_LINE void apply_rounded_constant(
    const Format<S>& format, T* q, int64_t n, bool finally, const Hat& hat, A w, A b, bool biased) {
  if (biased) apply_rounded(format, q, n, finally, hat, Constant<A>{w}, Constant<A>{b});
  else apply_rounded(format, q, n, finally, hat, Constant<A>{w}, nullptr);
}

}  // namespace
