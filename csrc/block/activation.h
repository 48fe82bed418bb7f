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

// exp(x) = 2^n exp(r), |r| <= ln 2 / 2, the second factor by a polynomial (coefficients: Cephes, expf).
ALWAYS_INLINE float exp_of(float x) {
  x = clamp(x, -87.0f, 88.0f);
  const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float e = p * (r * r) + r + 1.0f;
  return e * from_bits((to_bits(shifted) - to_bits(12582912.0f) + 127u) << 23);
}
// A quotient of polynomials in x^2, exact to fp32 where erf is not yet 1 (coefficients: Eigen, generic_fast_erf).
ALWAYS_INLINE float erf_of(float x) {
  x = clamp(x, -4.0f, 4.0f);
  const float t = x * x;
  float p = -2.72614225801306e-10f;
  p = p * t + 2.77068142495902e-08f;
  p = p * t - 2.10102402082508e-06f;
  p = p * t - 5.69250639462346e-05f;
  p = p * t - 7.34990630326855e-04f;
  p = p * t - 2.95459980854025e-03f;
  p = p * t - 1.60960333262415e-02f;
  float q = -1.45660718464996e-05f;
  q = q * t - 2.13374055278905e-04f;
  q = q * t - 1.68282697438203e-03f;
  q = q * t - 7.37332916720468e-03f;
  q = q * t - 1.42647390514189e-02f;
  return x * p / q;
}
// Near 0 by a polynomial, for 1 - 2 / (exp(2x) + 1) loses its digits there (coefficients: Cephes, tanhf).
ALWAYS_INLINE float tanh_of(float x) {
  const float t = x * x;
  float p = -5.70498872745e-3f;
  p = p * t + 2.06390887954e-2f;
  p = p * t - 5.37397155531e-2f;
  p = p * t + 1.33314422036e-1f;
  p = p * t - 3.33332819422e-1f;
  const float small = p * t * x + x, large = 1.0f - 2.0f / (exp_of(2.0f * x) + 1.0f);
  return t < 0.390625f ? small : large;
}

// f(z) and f'(z). NaN stays NaN.
template <Activation K> struct Function;
template <> struct Function<Activation::relu> {
  template <class A> ALWAYS_INLINE static A value(A z) { return z < 0 ? A(0) : z; }
  template <class A> ALWAYS_INLINE static A slope(A z) { return z > 0 ? A(1) : A(0); }
};
template <> struct Function<Activation::leaky_relu> {
  template <class A> ALWAYS_INLINE static A value(A z) { return z < 0 ? z * A(0.01) : z; }
  template <class A> ALWAYS_INLINE static A slope(A z) { return z > 0 ? A(1) : A(0.01); }
};
template <> struct Function<Activation::sigmoid> {
  template <class A> ALWAYS_INLINE static A value(A z) { return A(1) / (A(1) + exp_of(-z)); }
  template <class A> ALWAYS_INLINE static A slope(A z) { const A s = value(z); return s * (A(1) - s); }
};
template <> struct Function<Activation::silu> {
  template <class A> ALWAYS_INLINE static A value(A z) { return z / (A(1) + exp_of(-z)); }
  template <class A> ALWAYS_INLINE static A slope(A z) {
    const A s = A(1) / (A(1) + exp_of(-z));
    return s * (A(1) + z * (A(1) - s));
  }
};
template <> struct Function<Activation::tanh> {
  template <class A> ALWAYS_INLINE static A value(A z) { return tanh_of(z); }
  template <class A> ALWAYS_INLINE static A slope(A z) { const A t = tanh_of(z); return A(1) - t * t; }
};
template <> struct Function<Activation::gelu> {
  template <class A> ALWAYS_INLINE static A value(A z) {
    return z * (A(0.5) + A(0.5) * erf_of(z * A(0.70710678118654752)));
  }
  template <class A> ALWAYS_INLINE static A slope(A z) {
    return A(0.5) + A(0.5) * erf_of(z * A(0.70710678118654752)) + z * A(0.39894228040143268) * exp_of(A(-0.5) * z * z);
  }
};
template <> struct Function<Activation::gelu_tanh> {
  template <class A> ALWAYS_INLINE static A inside(A z) {
    return A(0.79788456080286536) * (z + A(0.044715) * z * z * z);
  }
  template <class A> ALWAYS_INLINE static A value(A z) { return A(0.5) * z * (A(1) + tanh_of(inside(z))); }
  template <class A> ALWAYS_INLINE static A slope(A z) {
    const A t = tanh_of(inside(z)), rise = A(0.79788456080286536) * (A(1) + A(3 * 0.044715) * z * z);
    return A(0.5) * (A(1) + t) + A(0.5) * z * (A(1) - t * t) * rise;
  }
};

// Only for gates: the gate itself, and 1 + gate.
template <> struct Function<Activation::none> {
  template <class A> ALWAYS_INLINE static A value(A z) { return z; }
  template <class A> ALWAYS_INLINE static A slope(A) { return A(1); }
};
template <> struct Function<Activation::plus_one> {
  template <class A> ALWAYS_INLINE static A value(A z) { return A(1) + z; }
  template <class A> ALWAYS_INLINE static A slope(A) { return A(1); }
};

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
// z = f(z)
template <class A> void activate(Activation kind, A* z, int64_t n) {
  with(kind, [=](auto f) {
    for (int64_t i = 0; i < n; ++i) z[i] = f.value(z[i]);
  });
}
// out = g * f'(z); out may be g.
template <class A> void multiply_by_slope(Activation kind, const A* z, const A* g, A* out, int64_t n) {
  with(kind, [=](auto f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = g[i] * f.slope(z[i]);
  });
}

// The same with z + skip in place of z.
template <class A>
void multiply_by_slope_after(Activation kind, const A* z, const A* skip, const A* g, A* out, int64_t n) {
  with(kind, [=](auto f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = g[i] * f.slope(z[i] + skip[i]);
  });
}

template <class Body> void with_gate(Activation kind, const Body& body) {
  if (kind == Activation::none) return body(Function<Activation::none>());
  with(kind, body);
}
// f(gate) of one.
template <class A> A value_of(Activation kind, A gate) {
  A value = 0;
  with_gate(kind, [&](auto f) { value = f.value(gate); });
  return value;
}
// out = x * f(gate); out may be x.
template <class A> void multiply_by_gate(Activation kind, const A* gate, const A* x, A* out, int64_t n) {
  with_gate(kind, [=](auto f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * f.value(gate[i]);
  });
}
// out = x * f(gate) + skip; out may be x.
template <class A>
void multiply_by_gate_and_add(Activation kind, const A* gate, const A* skip, const A* x, A* out, int64_t n) {
  with_gate(kind, [=](auto f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) out[i] = x[i] * f.value(gate[i]) + skip[i];
  });
}
// From g, the gradient of x * f(gate): dgate = g * x * f'(gate), and dx = g * f(gate); dx may be g.
template <class A>
void gate_gradients(Activation kind, const A* gate, const A* x, const A* g, A* dx, A* dgate, int64_t n) {
  with_gate(kind, [=](auto f) {
#pragma omp simd
    for (int64_t i = 0; i < n; ++i) {
      const A upstream = g[i], at = gate[i];
      dgate[i] = upstream * x[i] * f.slope(at);
      dx[i] = upstream * f.value(at);
    }
  });
}
// out = a + b; out may be one of them.
template <class A> void add(const A* a, const A* b, A* out, int64_t n) {
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

}  // namespace
