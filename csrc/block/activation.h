// Activations and their slopes, written so that the compiler vectorizes them: fp32 to a few units in the last place,
// double by the standard library.
#pragma once
#include "kernel.h"
#include "vector/convert.h"

namespace {

using normkit::Activation;

ALWAYS_INLINE double exp_of(double x) { return std::exp(x); }
ALWAYS_INLINE double erf_of(double x) { return std::erf(x); }
ALWAYS_INLINE double tanh_of(double x) { return std::tanh(x); }

// x between low and high; NaN stays NaN. By bits: a compiler that sees branches evaluates what follows for both bounds,
// too, and divides by numbers so large that the quotients are subnormal and slow.
ALWAYS_INLINE float clamp(float x, float low, float high) {
  const uint32_t below = -uint32_t(x < low);
  x = from_bits((to_bits(low) & below) | (to_bits(x) & ~below));
  const uint32_t above = -uint32_t(x > high);
  return from_bits((to_bits(high) & above) | (to_bits(x) & ~above));
}
template <class A> ALWAYS_INLINE A quotient(A a, A b) { return a / b; }
template <class A> ALWAYS_INLINE A one(A) { return 1; }
template <class A> ALWAYS_INLINE A positive(A z) { return z < 0 ? A(0) : z; }
template <class A> ALWAYS_INLINE A if_positive(A z, A yes, A no) { return z > 0 ? yes : no; }
template <class A> ALWAYS_INLINE A if_negative(A z, A yes, A no) { return z < 0 ? yes : no; }

// The same for a pack.
#if defined(NORMKIT_PACKS)
ALWAYS_INLINE Pack one(Pack) { return pack_of(1.0f); }
ALWAYS_INLINE Pack if_positive(Pack z, float yes, float no) { return z > 0.0f ? pack_of(yes) : pack_of(no); }
ALWAYS_INLINE Pack if_negative(Pack z, float yes, float no) { return z < 0.0f ? pack_of(yes) : pack_of(no); }
#endif

// exp(r) for |r| <= ln 2 / 2 (coefficients: Cephes, expf).
template <class V> ALWAYS_INLINE V exp_near_0(V r) {
  V p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  return p * (r * r) + r + 1.0f;
}
// exp(x) = 2^n exp(r)
ALWAYS_INLINE float exp_of(float x) {
  x = clamp(x, -87.0f, 88.0f);
  const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const float e = exp_near_0((x - n * 0.693359375f) + n * 2.12194440e-4f);
  return e * from_bits((to_bits(shifted) - to_bits(12582912.0f) + 127u) << 23);
}
#if defined(NORMKIT_PACKS)
// What is above 87 counts as 87, so that 1 + exp(x) has an inverse.
ALWAYS_INLINE Pack exp_of(Pack x) {
  x = clamp(x, -87.0f, 87.0f);
  const Pack n = nearest_whole(x * 1.44269504f);
  return scaled_by_power(exp_near_0((x - n * 0.693359375f) + n * 2.12194440e-4f), n);
}
#endif
// A quotient of polynomials in x^2, exact to fp32 where erf is not yet 1 (coefficients: Eigen, generic_fast_erf).
template <class V> ALWAYS_INLINE V erf_of(V x) {
  x = clamp(x, -4.0f, 4.0f);
  const V t = x * x;
  V p = t * -2.72614225801306e-10f + 2.77068142495902e-08f;
  p = p * t - 2.10102402082508e-06f;
  p = p * t - 5.69250639462346e-05f;
  p = p * t - 7.34990630326855e-04f;
  p = p * t - 2.95459980854025e-03f;
  p = p * t - 1.60960333262415e-02f;
  V q = t * -1.45660718464996e-05f - 2.13374055278905e-04f;
  q = q * t - 1.68282697438203e-03f;
  q = q * t - 7.37332916720468e-03f;
  q = q * t - 1.42647390514189e-02f;
  return quotient(x * p, q);
}
// Near 0 by a polynomial, for 1 - 2 / (exp(2x) + 1) loses its digits there (coefficients: Cephes, tanhf).
template <class V> ALWAYS_INLINE V tanh_of(V x) {
  const V t = x * x;
  V p = t * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * t - 5.37397155531e-2f;
  p = p * t + 1.33314422036e-1f;
  p = p * t - 3.33332819422e-1f;
  const V small = p * t * x + x, large = 1.0f - 2.0f * quotient(one(x), exp_of(2.0f * x) + 1.0f);
  return t < 0.390625f ? small : large;
}

// The numbers in a value that loops see.
template <class V> using Number = typename std::conditional<std::is_same<V, double>::value, double, float>::type;

// f(z) and f'(z) of a number, or of a pack. NaN stays NaN.
template <Activation K> struct Function;
template <> struct Function<Activation::relu> {
  template <class V> ALWAYS_INLINE static V value(V z) { return positive(z); }
  template <class V> ALWAYS_INLINE static V slope(V z) { return if_positive(z, Number<V>(1), Number<V>(0)); }
};
template <> struct Function<Activation::leaky_relu> {
  template <class V> ALWAYS_INLINE static V value(V z) { return z * if_negative(z, Number<V>(0.01), Number<V>(1)); }
  template <class V> ALWAYS_INLINE static V slope(V z) { return if_positive(z, Number<V>(1), Number<V>(0.01)); }
};
template <> struct Function<Activation::sigmoid> {
  template <class V> ALWAYS_INLINE static V value(V z) { return quotient(one(z), exp_of(-z) + 1); }
  template <class V> ALWAYS_INLINE static V slope(V z) { const V s = value(z); return s * (1 - s); }
};
template <> struct Function<Activation::silu> {
  template <class V> ALWAYS_INLINE static V value(V z) { return quotient(z, exp_of(-z) + 1); }
  template <class V> ALWAYS_INLINE static V slope(V z) {
    const V s = Function<Activation::sigmoid>::value(z);
    return s * (z * (1 - s) + 1);
  }
};
template <> struct Function<Activation::tanh> {
  template <class V> ALWAYS_INLINE static V value(V z) { return tanh_of(z); }
  template <class V> ALWAYS_INLINE static V slope(V z) { const V t = tanh_of(z); return 1 - t * t; }
};
template <> struct Function<Activation::gelu> {
  template <class V> ALWAYS_INLINE static V half(V z) {
    using N = Number<V>;
    return N(0.5) + N(0.5) * erf_of(z * N(0.70710678118654752));
  }
  template <class V> ALWAYS_INLINE static V value(V z) { return z * half(z); }
  template <class V> ALWAYS_INLINE static V slope(V z) {
    using N = Number<V>;
    return half(z) + z * N(0.39894228040143268) * exp_of(N(-0.5) * z * z);
  }
};
template <> struct Function<Activation::gelu_tanh> {
  template <class V> ALWAYS_INLINE static V tanh_inside(V z) {
    using N = Number<V>;
    return tanh_of(N(0.79788456080286536) * (z + N(0.044715) * z * z * z));
  }
  template <class V> ALWAYS_INLINE static V value(V z) { return Number<V>(0.5) * z * (1 + tanh_inside(z)); }
  template <class V> ALWAYS_INLINE static V slope(V z) {
    using N = Number<V>;
    const V t = tanh_inside(z), rise = N(0.79788456080286536) * (1 + N(3 * 0.044715) * z * z);
    return N(0.5) * (1 + t) + N(0.5) * z * (1 - t * t) * rise;
  }
};

// Only for gates: the gate itself, and 1 + gate.
template <> struct Function<Activation::none> {
  template <class V> ALWAYS_INLINE static V value(V z) { return z; }
  template <class V> ALWAYS_INLINE static V slope(V z) { return one(z); }
};
template <> struct Function<Activation::plus_one> {
  template <class V> ALWAYS_INLINE static V value(V z) { return z + 1; }
  template <class V> ALWAYS_INLINE static V slope(V z) { return one(z); }
};

// Whether the loop itself applies the activation: relu costs nothing there.
inline bool is_in_loop(const normkit::Fusion* f) {
  return f && f->activation == Activation::relu && !f->gate && !f->skip;
}

template <class Body> void with(Activation kind, const Body& body) {
  switch (kind) {
    case Activation::none: return;
    case Activation::relu: return body(Function<Activation::relu>());
    case Activation::leaky_relu: return body(Function<Activation::leaky_relu>());
    case Activation::silu: return body(Function<Activation::silu>());
    case Activation::gelu: return body(Function<Activation::gelu>());
    case Activation::gelu_tanh: return body(Function<Activation::gelu_tanh>());
    case Activation::sigmoid: return body(Function<Activation::sigmoid>());
    case Activation::tanh: return body(Function<Activation::tanh>());
    case Activation::plus_one: return body(Function<Activation::plus_one>());
  }
}
// body(at) for n elements of what is stored as A, in packs where they are faster.
template <class A, class Body> void all_of(int64_t n, const Body& body) {
  if constexpr (USES_PACKS<A>) in_packs(0, n, body);
  else each<A>(0, n, body);
}
// z = f(z), of values as loops see them.
template <class T> OUT_OF_LINE void activate(Activation kind, T* z, int64_t n) {
  with(kind, [=](auto f) { all_of<T>(n, [=](auto at) { at.put(z, f.value(at(z))); }); });
}
// out = g * f'(z); out may be g.
template <class A> OUT_OF_LINE void multiply_by_slope(Activation kind, const A* z, const A* g, A* out, int64_t n) {
  with(kind, [=](auto f) { all_of<A>(n, [=](auto at) { at.put(out, at(g) * f.slope(at(z))); }); });
}

// The same with z + skip in place of z.
template <class A>
OUT_OF_LINE void multiply_by_slope_after(Activation kind, const A* z, const A* skip, const A* g, A* out, int64_t n) {
  with(kind, [=](auto f) { all_of<A>(n, [=](auto at) { at.put(out, at(g) * f.slope(at(z) + at(skip))); }); });
}

template <class Body> void with_gate(Activation kind, const Body& body) {
  if (kind == Activation::none) return body(Function<Activation::none>());
  with(kind, body);
}
// f(gate) of one.
template <class A> OUT_OF_LINE A value_of(Activation kind, A gate) {
  A value = 0;
  with_gate(kind, [&](auto f) { value = f.value(gate); });
  return value;
}
// out = x * f(gate); out may be x.
template <class A>
OUT_OF_LINE void multiply_by_gate(Activation kind, const A* gate, const A* x, A* out, int64_t n) {
  with_gate(kind, [=](auto f) { all_of<A>(n, [=](auto at) { at.put(out, at(x) * f.value(at(gate))); }); });
}
// out = x * f(gate) + skip; out may be x.
template <class A>
OUT_OF_LINE void multiply_by_gate_and_add(
    Activation kind, const A* gate, const A* skip, const A* x, A* out, int64_t n) {
  with_gate(kind, [=](auto f) {
    all_of<A>(n, [=](auto at) { at.put(out, at(x) * f.value(at(gate)) + at(skip)); });
  });
}
// From g, the gradient of x * f(gate): dgate = g * x * f'(gate), and dx = g * f(gate); dx may be g.
template <class A>
OUT_OF_LINE void gate_gradients(
    Activation kind, const A* gate, const A* x, const A* g, A* dx, A* dgate, int64_t n) {
  with_gate(kind, [=](auto f) {
    all_of<A>(n, [=](auto at) {
      const auto upstream = at(g), own = at(gate);
      at.put(dgate, upstream * at(x) * f.slope(own));
      at.put(dx, upstream * f.value(own));
    });
  });
}
// out = a + b; out may be one of them.
template <class A> void add(const A* a, const A* b, A* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

}  // namespace
