// What the kernels share.

#pragma once

#include <immintrin.h>

#define NATIVE __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni")))

// e^x for x <= 0, to about 2e-7: 2^f by a polynomial for f in [-0.5, 0.5], the rest into the exponent.
NATIVE inline __m512 exponential(__m512 x) {
  const __m512 scaled = _mm512_mul_ps(_mm512_max_ps(x, _mm512_set1_ps(-87.0f)), _mm512_set1_ps(1.44269504f));
  const __m512 whole = _mm512_roundscale_ps(scaled, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 rest = _mm512_sub_ps(scaled, whole);
  __m512 power = _mm512_set1_ps(1.3333558e-3f);  // ln(2)^5 / 5!, and so on down to ln(2)
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(9.6181291e-3f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(5.5504109e-2f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(2.4022651e-1f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(6.9314718e-1f));
  power = _mm512_fmadd_ps(power, rest, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(power, whole);
}
