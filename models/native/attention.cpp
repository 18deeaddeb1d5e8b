// Softmax attention in bfloat16 for processors with AVX-512 BF16, which torch's own kernel leaves two thirds idle.
//
// Plain C functions, called through ctypes: neither Python's nor torch's headers are needed to build them. A processor without the
// instructions, or a compiler without x86, finds `palimpsest_supported` to say no.

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "vectors.h"

namespace {

// Six rows by four vectors of sixteen floats leave eight of the 32 registers for operands.
constexpr int kRows = 6;
constexpr int kTile = 64;
constexpr float kNothing = -std::numeric_limits<float>::infinity();

// Where one head's tensors begin, and how far apart their rows lie, in elements.
struct Matrix {
  const uint16_t* data;
  int64_t row;
};

// What all rows of one head's queries share. Keys are packed as [depth / 2][width] and values as [width / 2][size] pairs of bfloat16,
// the operands of the dot product instruction; behind `count` they are zero.
struct Head {
  const uint32_t* keys;
  const uint32_t* values;
  int64_t depth;
  int64_t size;
  int64_t count;
  int64_t width;
  float scale;
};

// R rows of pairs, `stride` apart, times a packed matrix of `depth` rows of pairs, `width` apart: 64 columns of the product.
template <int R>
NATIVE inline void multiply(const uint32_t* rows, int64_t stride, const uint32_t* packed, int64_t width, int64_t depth,
                            __m512 (&sums)[R][4]) {
  for (int r = 0; r < R; ++r) {
    for (int c = 0; c < 4; ++c) sums[r][c] = _mm512_setzero_ps();
  }
  for (int64_t p = 0; p < depth; ++p, packed += width) {
    const __m512bh first = (__m512bh)_mm512_loadu_si512(packed);
    const __m512bh second = (__m512bh)_mm512_loadu_si512(packed + 16);
    const __m512bh third = (__m512bh)_mm512_loadu_si512(packed + 32);
    const __m512bh fourth = (__m512bh)_mm512_loadu_si512(packed + 48);
    for (int r = 0; r < R; ++r) {
      const __m512bh pair = (__m512bh)_mm512_set1_epi32(rows[r * stride + p]);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], pair, first);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], pair, second);
      sums[r][2] = _mm512_dpbf16_ps(sums[r][2], pair, third);
      sums[r][3] = _mm512_dpbf16_ps(sums[r][3], pair, fourth);
    }
  }
}

// Scale one row of scores, add its bias, and say what the greatest is: NaN if any of them is.
NATIVE float prepare(float* scores, const uint16_t* bias, const Head& head) {
  const __m512 scale = _mm512_set1_ps(head.scale), nothing = _mm512_set1_ps(kNothing);
  __m512 greatest = nothing;
  __mmask16 unknown = 0;
  for (int64_t n = 0; n < head.width; n += 16) {
    const int64_t left = head.count - n;
    const __mmask16 inside = left >= 16 ? 0xffff : left <= 0 ? 0 : (__mmask16)((1u << left) - 1);
    __m512 score = _mm512_mul_ps(_mm512_loadu_ps(scores + n), scale);
    if (bias != nullptr) {
      const __m512i added = _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(inside, bias + n)), 16);
      score = _mm512_add_ps(score, _mm512_castsi512_ps(added));
    }
    score = _mm512_mask_mov_ps(nothing, inside, score);
    _mm512_storeu_ps(scores + n, score);
    greatest = _mm512_max_ps(greatest, score);
    unknown |= _mm512_cmp_ps_mask(score, score, _CMP_UNORD_Q);
  }
  if (unknown) return std::numeric_limits<float>::quiet_NaN();
  return _mm512_reduce_max_ps(greatest);
}

// e^(score - greatest) in bfloat16, and their sum.
NATIVE float weigh(const float* scores, float greatest, int64_t width, uint16_t* weights) {
  const __m512 peak = _mm512_set1_ps(greatest), nothing = _mm512_set1_ps(kNothing);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t n = 0; n < width; n += 16) {
    const __m512 score = _mm512_loadu_ps(scores + n);
    const __mmask16 seen = _mm512_cmp_ps_mask(score, nothing, _CMP_NEQ_UQ);
    const __m512 weight = _mm512_maskz_mov_ps(seen, exponential(_mm512_sub_ps(score, peak)));
    sum = _mm512_add_ps(sum, weight);
    _mm256_storeu_si256((__m256i*)(weights + n), (__m256i)_mm512_cvtneps_pbh(weight));
  }
  return _mm512_reduce_add_ps(sum);
}

// R rows of queries from `query` on, one behind the other.
template <int R>
NATIVE void attend_rows(const uint16_t* query, Matrix bias, const Head& head, float* scores, uint16_t* weights, uint16_t* out,
                        float* mass) {
  for (int64_t n = 0; n < head.width; n += kTile) {
    __m512 sums[R][4];
    multiply<R>((const uint32_t*)query, head.depth / 2, head.keys + n, head.width, head.depth / 2, sums);
    for (int r = 0; r < R; ++r) {
      for (int c = 0; c < 4; ++c) _mm512_storeu_ps(scores + r * head.width + n + 16 * c, sums[r][c]);
    }
  }
  float shares[R];
  for (int r = 0; r < R; ++r) {
    float* row = scores + r * head.width;
    const float greatest = prepare(row, bias.data == nullptr ? nullptr : bias.data + r * bias.row, head);
    if (greatest == kNothing || std::isnan(greatest)) {  // nothing is seen, or nothing can be said
      std::memset(weights + r * head.width, 0, head.width * sizeof(uint16_t));
      shares[r] = std::isnan(greatest) ? greatest : 0;
      mass[r] = greatest;
      continue;
    }
    const float sum = weigh(row, greatest, head.width, weights + r * head.width);
    shares[r] = 1 / sum;
    mass[r] = greatest + std::log(sum);
  }
  for (int64_t d = 0; d < head.size; d += kTile) {
    __m512 sums[R][4];
    multiply<R>((const uint32_t*)weights, head.width / 2, head.values + d, head.size, head.width / 2, sums);
    for (int r = 0; r < R; ++r) {
      const __m512 share = _mm512_set1_ps(shares[r]);
      for (int c = 0; c < 4; ++c) {
        const __m256i rounded = (__m256i)_mm512_cvtneps_pbh(_mm512_mul_ps(sums[r][c], share));
        _mm256_storeu_si256((__m256i*)(out + r * head.size + d + 16 * c), rounded);
      }
    }
  }
}

void pack_keys(Matrix keys, int64_t depth, int64_t count, int64_t width, uint32_t* packed) {
  for (int64_t begin = 0; begin < width; begin += 16) {  // a cache line of what is written
    for (int64_t p = 0; p < depth / 2; ++p) {
      for (int64_t n = begin; n < begin + 16; ++n) {
        uint32_t pair = 0;
        if (n < count) std::memcpy(&pair, keys.data + n * keys.row + 2 * p, sizeof pair);
        packed[p * width + n] = pair;
      }
    }
  }
}

void pack_values(Matrix values, int64_t size, int64_t count, int64_t width, uint32_t* packed) {
  for (int64_t n = 0; n < width; n += 2) {
    for (int64_t d = 0; d < size; ++d) {
      const uint32_t even = n < count ? values.data[n * values.row + d] : 0;
      const uint32_t odd = n + 1 < count ? values.data[(n + 1) * values.row + d] : 0;
      packed[n / 2 * size + d] = even | odd << 16;
    }
  }
}

}  // namespace

extern "C" int palimpsest_supported() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
}

// See models/native/attention.py. Strides are in elements: batch, head, row. `query`, `out` and `mass` have no gaps; a bias may be null.
extern "C" void palimpsest_attend(const uint16_t* query, const uint16_t* keys, const uint16_t* values, const uint16_t* bias,
                                  int64_t batch, int64_t heads, int64_t rows, int64_t count, int64_t depth, int64_t size,
                                  const int64_t* key_strides, const int64_t* value_strides, const int64_t* bias_strides, float scale,
                                  uint16_t* out, float* mass, int32_t threads) {
  const int64_t width = (count + kTile - 1) / kTile * kTile;
  const int64_t blocks = (rows + kRows - 1) / kRows;
  std::vector<uint32_t> packed_keys(depth / 2 * width), packed_values(width / 2 * size);
  for (int64_t pair = 0; pair < batch * heads; ++pair) {
    const int64_t b = pair / heads, h = pair % heads;
    pack_keys({keys + b * key_strides[0] + h * key_strides[1], key_strides[2]}, depth, count, width, packed_keys.data());
    pack_values({values + b * value_strides[0] + h * value_strides[1], value_strides[2]}, size, count, width, packed_values.data());
    const Head head{packed_keys.data(), packed_values.data(), depth, size, count, width, scale};
    const uint16_t* queries = query + pair * rows * depth;
    const uint16_t* biases = bias == nullptr ? nullptr : bias + b * bias_strides[0] + h * bias_strides[1];
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
      std::vector<float> scores(kRows * width);
      std::vector<uint16_t> weights(kRows * width);
#pragma omp for schedule(static)
      for (int64_t block = 0; block < blocks; ++block) {
        const int64_t first = block * kRows;
        const uint16_t* q = queries + first * depth;
        const Matrix row{biases == nullptr ? nullptr : biases + first * bias_strides[2], bias_strides[2]};
        uint16_t* o = out + (pair * rows + first) * size;
        float* m = mass + pair * rows + first;
        switch (std::min<int64_t>(kRows, rows - first)) {
          case 6: attend_rows<6>(q, row, head, scores.data(), weights.data(), o, m); break;
          case 5: attend_rows<5>(q, row, head, scores.data(), weights.data(), o, m); break;
          case 4: attend_rows<4>(q, row, head, scores.data(), weights.data(), o, m); break;
          case 3: attend_rows<3>(q, row, head, scores.data(), weights.data(), o, m); break;
          case 2: attend_rows<2>(q, row, head, scores.data(), weights.data(), o, m); break;
          case 1: attend_rows<1>(q, row, head, scores.data(), weights.data(), o, m); break;
        }
      }
    }
  }
}

#else

extern "C" int palimpsest_supported() { return 0; }

#endif
