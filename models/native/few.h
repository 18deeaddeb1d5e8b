// Softmax attention for few queries: keys are read once, as they lie in a session's state, and never packed.
//
// Near keys are bfloat16. Far ones, of some heads, are bfloat16, or integers of eight or four bits with scales, and stand in the same
// softmax. Scores, weights and sums are float32.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "vectors.h"

enum Kind : int64_t { kBfloat16, kInt8, kInt4 };

// Keys and values of some heads, (B, r, count, d). Strides are in bytes; rows have no gaps. `scale` is (B, r, count), `grid`
// (B, r, 2, d): centre and spread. Both may be null.
struct Stored {
  const char* data;
  int64_t batch_stride, head_stride;
  const float* scale;
  int64_t scale_batch_stride, scale_head_stride;  // in elements
  const float* grid;
};

struct Few {
  const uint16_t* query;         // (B, K, Q, d)
  const char *keys, *values;     // of session 0 and head 0
  int64_t batch_stride, head_stride;  // in bytes
  const int64_t* sessions;       // where each of the B sessions is, in batch strides; null: one behind the other
  const uint16_t* bias;          // (B, Q, count)
  int64_t batch, heads, queries, count, size;
  uint16_t* out;                 // (B, K, Q, d)
  // Far keys; all null or 0 where there are none.
  const int32_t* far_heads;      // (K,): index among the heads that have far keys, or -1
  int64_t far_count, far_number, kind;  // keys; heads; Kind
  const uint16_t* far_query;     // (B, r, Q, d)
  Stored far_keys, far_values;
  const float *offset, *slope;   // (B, r, Q)
  const float* age;              // (B, far_count)
  const uint8_t* visible;        // (B, r, far_count)
};

namespace {

NATIVE inline __m512 widen(const uint16_t* data) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)data)), 16));
}

// One row of d numbers as vectors of sixteen floats. Four bits: dimension i and i + d/2 share a byte, and stand for odd numbers from -15.
template <int64_t K, int V>
NATIVE inline void expand(const char* row, __m512 (&to)[V]) {
  if constexpr (K == kBfloat16) {
    for (int v = 0; v < V; ++v) to[v] = widen((const uint16_t*)row + 16 * v);
  } else if constexpr (K == kInt8) {
    for (int v = 0; v < V; ++v) to[v] = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)(row + 16 * v))));
  } else {
    const __m512 odd = _mm512_setr_ps(-15, -13, -11, -9, -7, -5, -3, -1, 1, 3, 5, 7, 9, 11, 13, 15);
    for (int v = 0; v < V / 2; ++v) {
      const __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(row + 16 * v)));
      to[v] = _mm512_permutexvar_ps(bytes, odd);
      to[v + V / 2] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), odd);
    }
  }
}

template <int64_t K>
inline int64_t row_bytes(int64_t size) {
  return K == kBfloat16 ? 2 * size : K == kInt8 ? size : size / 2;
}

// The sums of sixteen vectors, in order.
NATIVE inline __m512 sums_of(const __m512 (&x)[16]) {
  __m512 pairs[8], fours[4];
  for (int i = 0; i < 8; ++i) {
    pairs[i] = _mm512_add_ps(_mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]), _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]));
  }
  for (int i = 0; i < 4; ++i) {
    const __m512d even = _mm512_castps_pd(pairs[2 * i]), odd = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(even, odd)), _mm512_castpd_ps(_mm512_unpackhi_pd(even, odd)));
  }
  __m512 halves[2];
  for (int i = 0; i < 2; ++i) {
    halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                              _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
  }
  return _mm512_add_ps(_mm512_shuffle_f32x4(halves[0], halves[1], 0x88), _mm512_shuffle_f32x4(halves[0], halves[1], 0xdd));
}

// Products of R queries (R, d), float32, with `count` rows; what is written beyond them is of no account.
template <int64_t K, int V, int R>
NATIVE void score(const float* query, const char* rows, int64_t count, float* scores, int64_t width) {
  for (int64_t n = 0; n < count; n += 16) {
    __m512 parts[R][16];
    for (int i = 0; i < 16; ++i) {
      __m512 key[V];
      expand<K, V>(rows + std::min(n + i, count - 1) * row_bytes<K>(16 * V), key);
      for (int r = 0; r < R; ++r) {
        __m512 sum = _mm512_mul_ps(key[0], _mm512_loadu_ps(query + r * 16 * V));
        for (int v = 1; v < V; ++v) sum = _mm512_fmadd_ps(key[v], _mm512_loadu_ps(query + (r * V + v) * 16), sum);
        parts[r][i] = sum;
      }
    }
    for (int r = 0; r < R; ++r) _mm512_storeu_ps(scores + r * width + n, sums_of(parts[r]));
  }
}

// Values weighed and added up: (R, d) float32.
template <int64_t K, int V, int R>
NATIVE void gather(const float* weights, int64_t width, const char* rows, int64_t count, float* out) {
  __m512 sums[R][V];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) sums[r][v] = _mm512_setzero_ps();
  }
  for (int64_t n = 0; n < count; ++n) {
    __m512 value[V];
    expand<K, V>(rows + n * row_bytes<K>(16 * V), value);
    for (int r = 0; r < R; ++r) {
      const __m512 weight = _mm512_set1_ps(weights[r * width + n]);
      for (int v = 0; v < V; ++v) sums[r][v] = _mm512_fmadd_ps(weight, value[v], sums[r][v]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + (r * V + v) * 16, sums[r][v]);
  }
}

NATIVE float dot(const float* a, const float* b, int64_t size) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t d = 0; d < size; d += 16) sum = _mm512_fmadd_ps(_mm512_loadu_ps(a + d), _mm512_loadu_ps(b + d), sum);
  return _mm512_reduce_add_ps(sum);
}

// Scaled scores (count,) with all that is added to them; hidden keys get -inf.
NATIVE void adjust_near(float* scores, int64_t count, float scale, const uint16_t* bias) {
  const __m512 factor = _mm512_set1_ps(scale);
  for (int64_t n = 0; n < count; n += 16) {
    const int64_t left = count - n;
    const __mmask16 inside = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    const __m512i added = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, bias + n)), 16);
    const __m512 score = _mm512_fmadd_ps(_mm512_loadu_ps(scores + n), factor, _mm512_castsi512_ps(added));
    _mm512_mask_storeu_ps(scores + n, inside, score);
  }
}

NATIVE void adjust_far(float* scores, int64_t count, float scale, const float* by_key, float added, float slope, const float* age,
                       const uint8_t* visible) {
  const __m512 factor = _mm512_set1_ps(scale), constant = _mm512_set1_ps(added), down = _mm512_set1_ps(-slope);
  for (int64_t n = 0; n < count; n += 16) {
    const int64_t left = count - n;
    const __mmask16 inside = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + n), factor);
    if (by_key != nullptr) score = _mm512_mul_ps(score, _mm512_maskz_loadu_ps(inside, by_key + n));
    score = _mm512_add_ps(score, constant);
    if (age != nullptr) score = _mm512_fmadd_ps(down, _mm512_maskz_loadu_ps(inside, age + n), score);
    if (visible != nullptr) {
      const __mmask16 seen = _mm_test_epi8_mask(_mm_maskz_loadu_epi8(inside, visible + n), _mm_set1_epi8(-1));
      score = _mm512_mask_mov_ps(_mm512_set1_ps(-std::numeric_limits<float>::infinity()), seen, score);
    }
    _mm512_mask_storeu_ps(scores + n, inside, score);
  }
}

NATIVE float greatest_of(const float* scores, int64_t count) {
  __m512 greatest = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  for (int64_t n = 0; n < count; n += 16) {
    const int64_t left = count - n;
    const __mmask16 inside = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    greatest = _mm512_mask_max_ps(greatest, inside, greatest, _mm512_loadu_ps(scores + n));
  }
  return _mm512_reduce_max_ps(greatest);
}

// e^(score - greatest) in the scores' place, and their sum. NaN stays NaN.
NATIVE float weigh(float* scores, int64_t count, float greatest) {
  const __m512 peak = _mm512_set1_ps(greatest), nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 sum = _mm512_setzero_ps();
  for (int64_t n = 0; n < count; n += 16) {
    const int64_t left = count - n;
    const __mmask16 inside = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    const __m512 score = _mm512_loadu_ps(scores + n);
    const __mmask16 seen = inside & _mm512_cmp_ps_mask(score, nothing, _CMP_NEQ_UQ);
    const __m512 weight = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(score, peak)));
    const __m512 known = _mm512_mask_mov_ps(weight, seen & _mm512_cmp_ps_mask(score, score, _CMP_UNORD_Q), score);
    sum = _mm512_add_ps(sum, known);
    _mm512_mask_storeu_ps(scores + n, inside, known);
  }
  return _mm512_reduce_add_ps(sum);
}

NATIVE inline void scale_by(float* weights, const float* scale, int64_t count) {
  for (int64_t n = 0; n < count; ++n) weights[n] *= scale[n];
}

// R queries of one head of one session, from query `first` on.
template <int V, int R>
NATIVE void attend_few(const Few& job, int64_t b, int64_t head, int64_t first, std::vector<float>& buffer) {
  constexpr int64_t size = 16 * V;
  const int64_t far = job.far_heads == nullptr ? -1 : job.far_heads[head];
  const int64_t near_width = (job.count + 15) / 16 * 16, far_width = far < 0 ? 0 : (job.far_count + 15) / 16 * 16;
  buffer.resize(R * (near_width + far_width + 3 * size));
  float *near = buffer.data(), *away = near + R * near_width;
  float *query = away + R * far_width, *out = query + R * size, *found = out + R * size;
  const float scale = 1 / std::sqrt((float)size);
  const int64_t session = job.sessions == nullptr ? b : job.sessions[b];
  const int64_t where = session * job.batch_stride + head * job.head_stride;
  const int64_t row = (b * job.heads + head) * job.queries + first;
  for (int64_t d = 0; d < R * size; d += 16) _mm512_storeu_ps(query + d, widen(job.query + row * size + d));
  score<kBfloat16, V, R>(query, job.keys + where, job.count, near, near_width);
  const int64_t pair = b * job.far_number + far, asked = pair * job.queries + first;
  const Stored &keys = job.far_keys, &values = job.far_values;
  if (far >= 0) {
    float constants[R] = {};
    for (int r = 0; r < R; ++r) {
      float* row_query = query + r * size;
      for (int64_t d = 0; d < size; d += 16) _mm512_storeu_ps(row_query + d, widen(job.far_query + (asked + r) * size + d));
      if (keys.grid != nullptr) {
        const float *centre = keys.grid + pair * 2 * size, *spread = centre + size;
        constants[r] = scale * dot(row_query, centre, size);
        for (int64_t d = 0; d < size; ++d) row_query[d] *= spread[d];
      }
      if (job.offset != nullptr) constants[r] += job.offset[asked + r];
    }
    const char* rows = keys.data + b * keys.batch_stride + far * keys.head_stride;
    if (job.kind == kInt4) score<kInt4, V, R>(query, rows, job.far_count, away, far_width);
    else if (job.kind == kInt8) score<kInt8, V, R>(query, rows, job.far_count, away, far_width);
    else score<kBfloat16, V, R>(query, rows, job.far_count, away, far_width);
    const float* by_key = keys.scale == nullptr ? nullptr : keys.scale + b * keys.scale_batch_stride + far * keys.scale_head_stride;
    for (int r = 0; r < R; ++r) {
      adjust_far(away + r * far_width, job.far_count, scale, by_key, constants[r], job.slope == nullptr ? 0 : job.slope[asked + r],
                 job.age == nullptr ? nullptr : job.age + b * job.far_count,
                 job.visible == nullptr ? nullptr : job.visible + pair * job.far_count);
    }
  }
  float near_sums[R], far_sums[R] = {};
  for (int r = 0; r < R; ++r) {
    float *n = near + r * near_width, *f = away + r * far_width;
    adjust_near(n, job.count, scale, job.bias + (b * job.queries + first + r) * job.count);
    const float greatest = std::max(greatest_of(n, job.count), far < 0 ? -std::numeric_limits<float>::infinity() : greatest_of(f, job.far_count));
    near_sums[r] = weigh(n, job.count, greatest);
    if (far >= 0) far_sums[r] = weigh(f, job.far_count, greatest);
  }
  gather<kBfloat16, V, R>(near, near_width, job.values + where, job.count, out);
  if (far >= 0) {
    if (values.scale != nullptr) {
      const float* by_key = values.scale + b * values.scale_batch_stride + far * values.scale_head_stride;
      for (int r = 0; r < R; ++r) scale_by(away + r * far_width, by_key, job.far_count);
    }
    const char* rows = values.data + b * values.batch_stride + far * values.head_stride;
    if (job.kind == kInt4) gather<kInt4, V, R>(away, far_width, rows, job.far_count, found);
    else if (job.kind == kInt8) gather<kInt8, V, R>(away, far_width, rows, job.far_count, found);
    else gather<kBfloat16, V, R>(away, far_width, rows, job.far_count, found);
    const float* grid = values.grid == nullptr ? nullptr : values.grid + pair * 2 * size;
    for (int r = 0; r < R; ++r) {
      for (int64_t d = 0; d < size; ++d) {
        const float value = found[r * size + d];
        out[r * size + d] += grid == nullptr ? value : value * grid[size + d] + far_sums[r] * grid[d];
      }
    }
  }
  for (int r = 0; r < R; ++r) {
    const __m512 share = _mm512_set1_ps(1 / (near_sums[r] + far_sums[r]));
    for (int64_t d = 0; d < size; d += 16) {
      const __m512 rounded = _mm512_mul_ps(_mm512_loadu_ps(out + r * size + d), share);
      _mm256_storeu_si256((__m256i*)(job.out + (row + r) * size + d), (__m256i)_mm512_cvtneps_pbh(rounded));
    }
  }
}

template <int V>
void attend_few(const Few& job, int64_t task, std::vector<float>& buffer) {
  const int64_t blocks = (job.queries + 1) / 2, pair = task / blocks, first = task % blocks * 2;
  if (first + 1 < job.queries) attend_few<V, 2>(job, pair / job.heads, pair % job.heads, first, buffer);
  else attend_few<V, 1>(job, pair / job.heads, pair % job.heads, first, buffer);
}

// For heads of 32, 64, 96, 128 and 256 dimensions.
inline void attend_few(const Few& job, int64_t task, std::vector<float>& buffer) {
  switch (job.size / 16) {
    case 2: attend_few<2>(job, task, buffer); break;
    case 4: attend_few<4>(job, task, buffer); break;
    case 6: attend_few<6>(job, task, buffer); break;
    case 8: attend_few<8>(job, task, buffer); break;
    case 16: attend_few<16>(job, task, buffer); break;
  }
}

inline int64_t tasks_of(const Few& job) { return job.batch * job.heads * ((job.queries + 1) / 2); }

}  // namespace
