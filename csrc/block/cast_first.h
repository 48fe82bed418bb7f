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

// q = hat * w [+ b] for n elements. hat, w and b give an element as `Constant` and `Along` do.
template <class S, class T, class Hat, class W, class B>
ALWAYS_INLINE void apply_rounded(T* q, int64_t n, bool finally, const Hat& hat, const W& w, const B& b) {
  constexpr bool BIASED = !std::is_same<B, std::nullptr_t>::value;
  if constexpr (HALVES<S> > 0 && !PACKED<T>) {  // instructions round several at a time, which loops do not find
    each<T>(0, n, [=](auto at) { at.put(q, hat(at)); });
    round_to<S>(q, n);
    each<T>(0, n, [=](auto at) { at.put(q, at(q) * w(at)); });
    if constexpr (BIASED) {
      round_to<S>(q, n);
      each<T>(0, n, [=](auto at) { at.put(q, at(q) + b(at)); });
    }
  } else if constexpr (BIASED) {
    each<T>(0, n, [=](auto at) { at.put(q, stored<S>(stored<S>(hat(at)) * w(at)) + b(at)); });
  } else {
    each<T>(0, n, [=](auto at) { at.put(q, stored<S>(hat(at)) * w(at)); });
  }
  if constexpr (sizeof(S) == 2 && !PACKED<T>) {
    if (finally) round_to<S>(q, n);
  }
}

// The same with weight and bias along memory, where they are not null; else one weight, and one bias if `biased`.
template <class S, class T, class Hat, class A = arithmetic<S>>
OUT_OF_LINE void apply_rounded_along(T* q, int64_t n, bool finally, const Hat& hat, const A* w, const A* b) {
  const auto with_bias = [&](const auto& weight) {
    if (b) apply_rounded<S, T>(q, n, finally, hat, weight, Along<A>{b});
    else apply_rounded<S, T>(q, n, finally, hat, weight, nullptr);
  };
  if (w) with_bias(Along<A>{w});
  else with_bias(Constant<A>{1});
}
template <class S, class T, class Hat, class A = arithmetic<S>>
OUT_OF_LINE void apply_rounded_constant(T* q, int64_t n, bool finally, const Hat& hat, A w, A b, bool biased) {
  if (biased) apply_rounded<S, T>(q, n, finally, hat, Constant<A>{w}, Constant<A>{b});
  else apply_rounded<S, T>(q, n, finally, hat, Constant<A>{w}, nullptr);
}

}  // namespace
