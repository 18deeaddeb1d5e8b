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

// Tensors of sessions and heads. Strides are in bytes; what belongs to one head has no gaps.
struct Lying {
  const char* data;  // of session 0 and the first head; null: there is none
  int64_t session_stride, head_stride;

  const char* of(int64_t session, int64_t head) const {
    return data == nullptr ? nullptr : data + session * session_stride + head * head_stride;
  }
};

// Keys or values of some heads, (sessions, r, count, d); `scale` (sessions, r, count), float32 or bfloat16; `grid` (sessions, r, 2, d),
// float32: centre and spread.
struct Stored {
  Lying codes, scale, grid;
  int64_t narrow;  // whether scales are bfloat16
};

struct Few {
  const uint16_t* query;         // (B, K, Q, d)
  const char *keys, *values;     // of session 0 and head 0
  int64_t batch_stride, head_stride;  // in bytes
  const int64_t* sessions;       // where each of the B sessions is, in batch strides; null: one behind the other
  const uint16_t* bias;          // (B, Q, count)
  int64_t batch, heads, queries, count, size;
  uint16_t* out;                 // (B, K, Q, d)
  // Far keys; all null or 0 where there are none. Where `far_counts` are given, what is stored lies as near keys do, in `sessions`, so
  // many in each, ordered by age; else one session lies behind the other.
  const int32_t* far_heads;      // (K,): index among the heads that have far keys, or -1
  int64_t far_count, far_number, kind;  // keys; heads; Kind
  const uint16_t* far_query;     // (B, r, Q, d)
  Stored far_keys, far_values;
  const float *offset, *slope;   // (B, r, Q)
  const float* age;              // (B, far_count)
  const uint8_t* visible;        // (B, r, far_count)
  const int64_t* far_counts;     // (B,)
  const uint8_t* tiles;          // (B, Q, tiles): what the bias says of each (`survey` in many.h); only many queries need it
};

// What some queries have found among some keys: R * (d + 2) numbers, of which d are sums of weighed values, then the sum of the weights
// and the greatest score.

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

// Scales from key `begin` on as float32: where they lie, or copied to `buffer`.
NATIVE inline const float* scales_of(const Stored& stored, int64_t session, int64_t head, int64_t begin, int64_t count, float* buffer) {
  const char* at = stored.scale.of(session, head);
  if (at == nullptr || !stored.narrow) return at == nullptr ? nullptr : (const float*)at + begin;
  const uint16_t* narrow = (const uint16_t*)at + begin;
  for (int64_t n = 0; n < count; n += 16) {
    const int64_t left = count - n;
    const __mmask16 inside = left >= 16 ? 0xffff : (__mmask16)((1u << left) - 1);
    const __m512i bits = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, narrow + n)), 16);
    _mm512_storeu_ps(buffer + n, _mm512_castsi512_ps(bits));
  }
  return buffer;
}

// Of `count` keys the part from `begin` to `end`.
struct Span {
  int64_t begin, end;
  int64_t number() const { return end - begin; }
};

inline Span span_of(int64_t count, int64_t part, int64_t parts) {
  const auto at = [&](int64_t p) { return p == parts ? count : count * p / parts / 16 * 16; };
  return {at(part), at(part + 1)};
}

// R queries of one head of one session, from query `first` on, among one of `parts` parts of its keys.
template <int V, int R>
NATIVE void search(const Few& job, int64_t b, int64_t head, int64_t first, int64_t part, int64_t parts, std::vector<float>& buffer,
                   float* found) {
  constexpr int64_t size = 16 * V;
  const int64_t session = job.sessions == nullptr ? b : job.sessions[b], far_session = job.far_counts == nullptr ? b : session;
  const int64_t far_count = job.far_counts == nullptr ? job.far_count : job.far_counts[b];
  const int64_t far = job.far_heads == nullptr || far_count == 0 ? -1 : job.far_heads[head];
  const Span by = span_of(job.count, part, parts), away_by = far < 0 ? Span{0, 0} : span_of(far_count, part, parts);
  const int64_t near_width = (by.number() + 15) / 16 * 16, far_width = (away_by.number() + 15) / 16 * 16;
  buffer.resize(R * (near_width + far_width + 2 * size) + 2 * far_width);
  float *near = buffer.data(), *away = near + R * near_width, *spare = away + R * far_width, *ages = spare + far_width;
  float *query = ages + far_width, *more = query + R * size;
  const float scale = 1 / std::sqrt((float)size);
  const int64_t where = session * job.batch_stride + head * job.head_stride + by.begin * 2 * size;
  const int64_t row = (b * job.heads + head) * job.queries + first;
  for (int64_t d = 0; d < R * size; d += 16) _mm512_storeu_ps(query + d, widen(job.query + row * size + d));
  score<kBfloat16, V, R>(query, job.keys + where, by.number(), near, near_width);
  const int64_t pair = b * job.far_number + far, asked = pair * job.queries + first;
  const Stored &keys = job.far_keys, &values = job.far_values;
  const int64_t skipped = away_by.begin * (job.kind == kInt4 ? size / 2 : job.kind == kInt8 ? size : 2 * size);
  if (far >= 0) {
    float constants[R] = {};
    const float* grid = (const float*)keys.grid.of(far_session, far);
    for (int r = 0; r < R; ++r) {
      float* row_query = query + r * size;
      for (int64_t d = 0; d < size; d += 16) _mm512_storeu_ps(row_query + d, widen(job.far_query + (asked + r) * size + d));
      if (grid != nullptr) {
        constants[r] = scale * dot(row_query, grid, size);
        for (int64_t d = 0; d < size; ++d) row_query[d] *= grid[size + d];
      }
      if (job.offset != nullptr) constants[r] += job.offset[asked + r];
    }
    const char* rows = keys.codes.of(far_session, far) + skipped;
    if (job.kind == kInt4) score<kInt4, V, R>(query, rows, away_by.number(), away, far_width);
    else if (job.kind == kInt8) score<kInt8, V, R>(query, rows, away_by.number(), away, far_width);
    else score<kBfloat16, V, R>(query, rows, away_by.number(), away, far_width);
    const float* by_key = scales_of(keys, far_session, far, away_by.begin, away_by.number(), spare);
    const float* age = job.age == nullptr ? nullptr : job.age + b * job.far_count + away_by.begin;
    if (job.far_counts != nullptr && job.slope != nullptr) {
      for (int64_t n = 0; n < away_by.number(); ++n) ages[n] = (float)(far_count - 1 - away_by.begin - n) / far_count;
      age = ages;
    }
    for (int r = 0; r < R; ++r) {
      adjust_far(away + r * far_width, away_by.number(), scale, by_key, constants[r], job.slope == nullptr ? 0 : job.slope[asked + r],
                 age, job.visible == nullptr ? nullptr : job.visible + pair * job.far_count + away_by.begin);
    }
  }
  float *out = found, *sums = found + R * size, *peaks = sums + R, far_sums[R] = {};
  for (int r = 0; r < R; ++r) {
    float *n = near + r * near_width, *f = away + r * far_width;
    adjust_near(n, by.number(), scale, job.bias + (b * job.queries + first + r) * job.count + by.begin);
    peaks[r] = std::max(greatest_of(n, by.number()), greatest_of(f, away_by.number()));
    if (far >= 0) far_sums[r] = weigh(f, away_by.number(), peaks[r]);
    sums[r] = weigh(n, by.number(), peaks[r]) + far_sums[r];
  }
  gather<kBfloat16, V, R>(near, near_width, job.values + where, by.number(), out);
  if (far < 0) return;
  const float* by_key = scales_of(values, far_session, far, away_by.begin, away_by.number(), spare);
  for (int r = 0; r < R && by_key != nullptr; ++r) scale_by(away + r * far_width, by_key, away_by.number());
  const char* rows = values.codes.of(far_session, far) + skipped;
  if (job.kind == kInt4) gather<kInt4, V, R>(away, far_width, rows, away_by.number(), more);
  else if (job.kind == kInt8) gather<kInt8, V, R>(away, far_width, rows, away_by.number(), more);
  else gather<kBfloat16, V, R>(away, far_width, rows, away_by.number(), more);
  const float* grid = (const float*)values.grid.of(far_session, far);
  for (int r = 0; r < R; ++r) {
    for (int64_t d = 0; d < size; ++d) {
      const float value = more[r * size + d];
      out[r * size + d] += grid == nullptr ? value : value * grid[size + d] + far_sums[r] * grid[d];
    }
  }
}

constexpr int64_t kTogether = 4;  // queries that keys are read for at once

inline int64_t tasks_of(const Few& job) { return job.batch * job.heads * ((job.queries + kTogether - 1) / kTogether); }

// Numbers that one part of a task finds.
inline int64_t room_of(const Few& job) { return kTogether * (job.size + 2); }

template <int V>
void search(const Few& job, int64_t task, int64_t part, int64_t parts, std::vector<float>& buffer, float* found) {
  const int64_t blocks = (job.queries + kTogether - 1) / kTogether, pair = task / blocks, first = task % blocks * kTogether;
  const int64_t b = pair / job.heads, head = pair % job.heads;
  switch (std::min(kTogether, job.queries - first)) {
    case 1: search<V, 1>(job, b, head, first, part, parts, buffer, found); break;
    case 2: search<V, 2>(job, b, head, first, part, parts, buffer, found); break;
    case 3: search<V, 3>(job, b, head, first, part, parts, buffer, found); break;
    case 4: search<V, 4>(job, b, head, first, part, parts, buffer, found); break;
  }
}

// For heads of 32, 64, 96, 128 and 256 dimensions: `found` are room_of(job) numbers.
inline void search(const Few& job, int64_t task, int64_t part, int64_t parts, std::vector<float>& buffer, float* found) {
  switch (job.size / 16) {
    case 2: search<2>(job, task, part, parts, buffer, found); break;
    case 4: search<4>(job, task, part, parts, buffer, found); break;
    case 6: search<6>(job, task, part, parts, buffer, found); break;
    case 8: search<8>(job, task, part, parts, buffer, found); break;
    case 16: search<16>(job, task, part, parts, buffer, found); break;
  }
}

// What all parts of a task have found, one behind the other, as one softmax.
NATIVE inline void join(const Few& job, int64_t task, const float* found, int64_t parts) {
  const int64_t blocks = (job.queries + kTogether - 1) / kTogether, pair = task / blocks, first = task % blocks * kTogether;
  const int64_t together = std::min(kTogether, job.queries - first), room = room_of(job), size = job.size;
  for (int64_t r = 0; r < together; ++r) {
    float greatest = -std::numeric_limits<float>::infinity(), sum = 0;
    for (int64_t p = 0; p < parts; ++p) greatest = std::max(greatest, found[p * room + together * (size + 1) + r]);
    const auto weight = [&](int64_t p) { return std::exp(found[p * room + together * (size + 1) + r] - greatest); };
    for (int64_t p = 0; p < parts; ++p) sum += weight(p) * found[p * room + together * size + r];
    for (int64_t d = 0; d < size; d += 16) {
      __m512 all = _mm512_setzero_ps();
      for (int64_t p = 0; p < parts; ++p) {
        all = _mm512_fmadd_ps(_mm512_set1_ps(weight(p)), _mm512_loadu_ps(found + p * room + r * size + d), all);
      }
      const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(all, _mm512_set1_ps(1 / sum)));
      _mm256_storeu_si256((__m256i*)(job.out + (pair * job.queries + first + r) * size + d), rounded);
    }
  }
}

}  // namespace
