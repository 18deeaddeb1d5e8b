// The dense half of a decoder layer in small integers, for processors with AVX-512 VNNI: projections and feed-forward network.
//
// Weights are eight bits with one scale an output, or four bits with a scale and a lowest value for every 32 inputs, as GGUF's Q4_1 has
// them. Activations are eight bits with a scale for every 64 inputs: a token's largest numbers stand in few places, and one scale
// for all of them would cost ten times the error. Sums of products are exact int32; everything else is float32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "vectors.h"

namespace {

constexpr int kRows = 6;     // rows by two vectors of int32 and of float32 sums each: 24 of 32 registers
constexpr int kPanel = 32;   // outputs whose weights stay in the first cache while all rows pass
constexpr int kGroup = 64;   // inputs that share a scale
constexpr int kNibbles = 32; // inputs whose weights of four bits share a scale and a lowest value
constexpr int kBlock = 48;   // rows whose hidden activations stay in the second cache
constexpr int kAlone = 4;   // rows up to which every thread rounds all of them for itself
constexpr int kFew = 32;     // rows a thread, below which threads divide the outputs and not the rows

}  // namespace

// Eight bits: `codes` are weights plus 128 as [outputs / 32][inputs / 4][32][4], so that four neighbouring inputs meet in one 32-bit lane.
// Four bits: the same order, but the second sixteen outputs are the upper halves of the bytes of the first.
struct Packed {
  const uint8_t* codes;
  const float* scale;    // of each output; four bits: null
  const uint16_t* grid;  // four bits: [outputs / 32][inputs / 32][2][32] float16, scales and lowest values; eight bits: null
  int64_t outputs;
  int64_t inputs;
};

// What all calls for one layer share. `query` to `value` are written as (batch, heads, length, size) bfloat16 each.
struct Project {
  const float* x;  // (batch * length, inputs)
  const float* norm;
  float eps;
  Packed weights;
  const float* cos;  // (batch * length, size / 2)
  const float* sin;
  int64_t heads, kv_heads, size, length, rows;
  uint16_t *query, *near, *key, *value;
};

struct Finish {
  float* x;  // (batch * length, inputs): what attention and network add is added to it
  const uint16_t* heads;
  int64_t batch_stride, head_stride, row_stride;  // of `heads`, in elements
  int64_t length, size, rows;
  Packed out;
  const float* norm;
  float eps;
  Packed gate_up;  // each panel: 16 gates and the 16 numbers they let through
  Packed down;
};

struct ReadOut {
  const float* x;
  const float* norm;
  float eps;
  Packed weights;
  int64_t rows;
  float* logits;
};

namespace {

// Rows of activations in eight bits. What weights of eight bits are too large by, 128, is taken back with `shift`; `sums` are those of
// each 32 codes, times which lowest values count.
struct Rounded {
  std::vector<int8_t> codes;
  std::vector<float> scale, sums;
  std::vector<int32_t> shift;
  int64_t inputs = 0;
  int64_t groups = 0;

  void resize(int64_t rows, int64_t width) {
    inputs = width, groups = width / kGroup;
    codes.resize(rows * inputs), scale.resize(rows * groups), shift.resize(rows * groups), sums.resize(rows * inputs / kNibbles);
  }
};

struct Scratch {
  Rounded narrow, broad;
  std::vector<float> wide;
};

NATIVE inline __m512 from_bfloat16(const uint16_t* data) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)data)), 16));
}

NATIVE inline void to_bfloat16(uint16_t* data, __m512 x) { _mm256_storeu_si256((__m256i*)data, (__m256i)_mm512_cvtneps_pbh(x)); }

// One group of 64 numbers. Where one of them is NaN or infinite the scale is NaN, and so is what comes of it.
NATIVE inline void round_group(const __m512 (&x)[4], Rounded& to, int64_t row, int64_t group) {
  const __m512 greatest = _mm512_max_ps(_mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1])),
                                        _mm512_max_ps(_mm512_abs_ps(x[2]), _mm512_abs_ps(x[3])));
  const float known = 0 * _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(x[0], x[1]), _mm512_add_ps(x[2], x[3])));
  const float scale = _mm512_reduce_max_ps(greatest) / 127;
  const __m512 inverse = _mm512_set1_ps(scale > 0 ? 1 / scale : 0);
  int8_t* codes = to.codes.data() + row * to.inputs + group * kGroup;
  int32_t sums[2];
  for (int half = 0; half < 2; ++half) {
    const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * half], inverse));
    const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * half + 1], inverse));
    sums[half] = _mm512_reduce_add_epi32(_mm512_add_epi32(first, second));
    _mm_storeu_si128((__m128i*)(codes + 32 * half), _mm512_cvtsepi32_epi8(first));
    _mm_storeu_si128((__m128i*)(codes + 32 * half + 16), _mm512_cvtsepi32_epi8(second));
    to.sums[2 * (row * to.groups + group) + half] = sums[half];
  }
  to.scale[row * to.groups + group] = scale + known;
  to.shift[row * to.groups + group] = -128 * (sums[0] + sums[1]);
}

NATIVE void round_row(const float* x, Rounded& to, int64_t row) {
  for (int64_t group = 0; group < to.groups; ++group) {
    __m512 part[4];
    for (int i = 0; i < 4; ++i) part[i] = _mm512_loadu_ps(x + group * kGroup + 16 * i);
    round_group(part, to, row, group);
  }
}

// The root-mean-square norm of a row, rounded.
NATIVE void round_normed(const float* x, const float* weight, float eps, Rounded& to, int64_t row) {
  __m512 squares = _mm512_setzero_ps();
  for (int64_t k = 0; k < to.inputs; k += 16) {
    const __m512 part = _mm512_loadu_ps(x + k);
    squares = _mm512_fmadd_ps(part, part, squares);
  }
  const __m512 inverse = _mm512_set1_ps(1 / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / to.inputs + eps));
  for (int64_t group = 0; group < to.groups; ++group) {
    __m512 part[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t k = group * kGroup + 16 * i;
      part[i] = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(x + k), inverse), _mm512_loadu_ps(weight + k));
    }
    round_group(part, to, row, group);
  }
}

// Four inputs of R rows, `width` apart, times a panel's weights for them.
template <int R>
NATIVE inline __attribute__((always_inline)) void take_four(const int8_t* rows, int64_t width, __m512i left, __m512i right,
                                                            __m512i (&products)[R][2]) {
  for (int r = 0; r < R; ++r) {
    int32_t four;
    std::memcpy(&four, rows + r * width, sizeof four);
    const __m512i inputs = _mm512_set1_epi32(four);
    products[r][0] = _mm512_dpbusd_epi32(products[r][0], left, inputs);
    products[r][1] = _mm512_dpbusd_epi32(products[r][1], right, inputs);
  }
}

// R rows times one panel: 32 outputs each, without the outputs' scales.
template <int R>
NATIVE inline void multiply(const Rounded& x, int64_t row, const uint8_t* codes, __m512 (&sums)[R][2]) {
  const int8_t* first = x.codes.data() + row * x.inputs;
  const int64_t next = row == 0 ? kPanel * x.inputs : 0;  // the first rows fetch the next panel for all
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  for (int64_t group = 0; group < x.groups; ++group, first += kGroup) {
    __m512i products[R][2];
    for (int r = 0; r < R; ++r) products[r][0] = products[r][1] = _mm512_set1_epi32(x.shift[(row + r) * x.groups + group]);
    for (int k = 0; k < kGroup; k += 4, codes += 4 * kPanel) {
      const __m512i left = _mm512_loadu_si512(codes), right = _mm512_loadu_si512(codes + 64);
      _mm_prefetch((const char*)codes + next, _MM_HINT_T1);
      _mm_prefetch((const char*)codes + next + 64, _MM_HINT_T1);
      take_four<R>(first + k, x.inputs, left, right, products);
    }
    for (int r = 0; r < R; ++r) {
      const __m512 scale = _mm512_set1_ps(x.scale[(row + r) * x.groups + group]);
      sums[r][0] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r][0]), scale, sums[r][0]);
      sums[r][1] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r][1]), scale, sums[r][1]);
    }
  }
}

// The same of weights in four bits, whose scales are in it.
template <int R>
NATIVE inline void multiply(const Rounded& x, int64_t row, const uint8_t* codes, const uint16_t* grid, __m512 (&sums)[R][2]) {
  const int8_t* first = x.codes.data() + row * x.inputs;
  const int64_t next = row == 0 ? kPanel * x.inputs / 2 : 0;
  const __m512i low = _mm512_set1_epi8(15);
  for (int r = 0; r < R; ++r) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
  for (int64_t group = 0; group < x.groups; ++group) {
    __m512 parts[R][2];
    for (int r = 0; r < R; ++r) parts[r][0] = parts[r][1] = _mm512_setzero_ps();
    for (int64_t half = 0; half < kGroup / kNibbles; ++half, first += kNibbles, grid += 2 * kPanel) {
      __m512i products[R][2];
      for (int r = 0; r < R; ++r) products[r][0] = products[r][1] = _mm512_setzero_si512();
      for (int k = 0; k < kNibbles; k += 4, codes += 2 * kPanel) {
        const __m512i both = _mm512_loadu_si512(codes);
        _mm_prefetch((const char*)codes + next, _MM_HINT_T1);
        const __m512i left = _mm512_and_si512(both, low), right = _mm512_and_si512(_mm512_srli_epi16(both, 4), low);
        take_four<R>(first + k, x.inputs, left, right, products);
      }
      for (int c = 0; c < 2; ++c) {
        const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(grid + 16 * c)));
        const __m512 lowest = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(grid + kPanel + 16 * c)));
        for (int r = 0; r < R; ++r) {
          const __m512 sum = _mm512_set1_ps(x.sums[2 * ((row + r) * x.groups + group) + half]);
          parts[r][c] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products[r][c]), scale, _mm512_fmadd_ps(lowest, sum, parts[r][c]));
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      const __m512 scale = _mm512_set1_ps(x.scale[(row + r) * x.groups + group]);
      for (int c = 0; c < 2; ++c) sums[r][c] = _mm512_fmadd_ps(parts[r][c], scale, sums[r][c]);
    }
  }
}

// What becomes of 32 outputs of a row.
struct Store {
  float* to;
  int64_t width;
  NATIVE inline void operator()(int64_t row, int64_t panel, __m512 left, __m512 right) const {
    float* at = to + row * width + panel * kPanel;
    _mm512_storeu_ps(at, left);
    _mm512_storeu_ps(at + 16, right);
  }
};

struct Add {
  float* to;
  int64_t width;
  NATIVE inline void operator()(int64_t row, int64_t panel, __m512 left, __m512 right) const {
    float* at = to + row * width + panel * kPanel;
    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), left));
    _mm512_storeu_ps(at + 16, _mm512_add_ps(_mm512_loadu_ps(at + 16), right));
  }
};

struct Gate {  // SwiGLU: silu(left) * right
  float* to;
  int64_t width;
  NATIVE inline void operator()(int64_t row, int64_t panel, __m512 left, __m512 right) const {
    const __m512 one = _mm512_set1_ps(1), zero = _mm512_setzero_ps();
    const __m512 small = exponential(_mm512_sub_ps(zero, _mm512_abs_ps(left)));
    const __m512 above = _mm512_div_ps(_mm512_mul_ps(left, right), _mm512_add_ps(one, small));
    const __mmask16 negative = _mm512_cmp_ps_mask(left, zero, _CMP_LT_OQ);
    _mm512_storeu_ps(to + row * width + panel * (kPanel / 2), _mm512_mask_mul_ps(above, negative, above, small));
  }
};

template <int R, class Use>
NATIVE inline void multiply_and_use(const Rounded& x, int64_t row, const Packed& weights, int64_t panel, const Use& use) {
  __m512 sums[R][2];
  if (weights.grid != nullptr) {
    const int64_t blocks = weights.inputs / kNibbles;
    multiply<R>(x, row, weights.codes + panel * kPanel * weights.inputs / 2, weights.grid + panel * blocks * 2 * kPanel, sums);
    for (int r = 0; r < R; ++r) use(row + r, panel, sums[r][0], sums[r][1]);
    return;
  }
  multiply<R>(x, row, weights.codes + panel * kPanel * weights.inputs, sums);
  const __m512 left = _mm512_loadu_ps(weights.scale + panel * kPanel), right = _mm512_loadu_ps(weights.scale + panel * kPanel + 16);
  for (int r = 0; r < R; ++r) use(row + r, panel, _mm512_mul_ps(sums[r][0], left), _mm512_mul_ps(sums[r][1], right));
}

// One part of the outputs of `rows` rows.
template <class Use>
NATIVE void product(const Rounded& x, int64_t rows, const Packed& weights, int part, int parts, const Use& use) {
  const int64_t panels = weights.outputs / kPanel;
  for (int64_t panel = panels * part / parts; panel < panels * (part + 1) / parts; ++panel) {
    int64_t row = 0;
    for (; row + kRows <= rows; row += kRows) multiply_and_use<kRows>(x, row, weights, panel, use);
    switch (rows - row) {
      case 5: multiply_and_use<5>(x, row, weights, panel, use); break;
      case 4: multiply_and_use<4>(x, row, weights, panel, use); break;
      case 3: multiply_and_use<3>(x, row, weights, panel, use); break;
      case 2: multiply_and_use<2>(x, row, weights, panel, use); break;
      case 1: multiply_and_use<1>(x, row, weights, panel, use); break;
    }
  }
}

// One head of one row turned by its position.
NATIVE inline void rotate(const float* x, const float* cos, const float* sin, int64_t size, uint16_t* to) {
  const int64_t half = size / 2;
  for (int64_t d = 0; d < half; d += 16) {
    const __m512 first = _mm512_loadu_ps(x + d), second = _mm512_loadu_ps(x + half + d);
    const __m512 c = _mm512_loadu_ps(cos + d), s = _mm512_loadu_ps(sin + d);
    to_bfloat16(to + d, _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
    to_bfloat16(to + half + d, _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
  }
}

NATIVE void place_heads(const Project& job, int64_t row, const float* qkv) {
  const int64_t session = row / job.length, place = row % job.length, size = job.size;
  const float *cos = job.cos + row * (size / 2), *sin = job.sin + row * (size / 2);
  for (int64_t h = 0; h < job.heads; ++h, qkv += size) {
    const int64_t at = ((session * job.heads + h) * job.length + place) * size;
    for (int64_t d = 0; d < size; d += 16) to_bfloat16(job.query + at + d, _mm512_loadu_ps(qkv + d));
    rotate(qkv, cos, sin, size, job.near + at);
  }
  for (int64_t h = 0; h < job.kv_heads; ++h, qkv += size) {
    rotate(qkv, cos, sin, size, job.key + ((session * job.kv_heads + h) * job.length + place) * size);
  }
  for (int64_t h = 0; h < job.kv_heads; ++h, qkv += size) {
    const int64_t at = ((session * job.kv_heads + h) * job.length + place) * size;
    for (int64_t d = 0; d < size; d += 16) to_bfloat16(job.value + at + d, _mm512_loadu_ps(qkv + d));
  }
}

NATIVE void round_heads(const Finish& job, int64_t row, Rounded& to, int64_t at) {
  const uint16_t* heads = job.heads + row / job.length * job.batch_stride + row % job.length * job.row_stride;
  for (int64_t group = 0; group < to.groups; ++group) {
    __m512 part[4];
    for (int i = 0; i < 4; ++i) {
      const int64_t k = group * kGroup + 16 * i;
      part[i] = from_bfloat16(heads + k / job.size * job.head_stride + k % job.size);
    }
    round_group(part, to, at, group);
  }
}

// All threads of a team that share the same rows wait for one another; one that has rows of its own need not.
inline void meet(int parts) {
  if (parts > 1) {
#pragma omp barrier
  }
}

// Whether each thread rounds all rows for itself: sooner done than waited for.
inline bool alone(int64_t rows, int parts) { return parts == 1 || rows <= kAlone; }

// Rows that a thread has to round, of all there are: `mine` is where they go, and what the products read.
struct Share {
  int64_t first, step;
  Rounded& mine;
};

inline Share share_of(int64_t rows, int part, int parts, Rounded& shared, Rounded& own) {
  return alone(rows, parts) ? Share{0, 1, own} : Share{part, parts, shared};
}

void run(const Project& job, int64_t begin, int64_t end, int part, int parts, Scratch& scratch) {
  const int64_t rows = end - begin, width = job.weights.outputs;
  static thread_local Rounded own;
  own.resize(std::min<int64_t>(rows, kAlone), job.weights.inputs);
  const Share share = share_of(rows, part, parts, scratch.narrow, parts == 1 ? scratch.narrow : own);
  for (int64_t r = share.first; r < rows; r += share.step) {
    round_normed(job.x + (begin + r) * job.weights.inputs, job.norm, job.eps, share.mine, r);
  }
  if (!alone(rows, parts)) meet(parts);
  product(share.mine, rows, job.weights, part, parts, Store{scratch.wide.data(), width});
  meet(parts);
  for (int64_t r = part; r < rows; r += parts) place_heads(job, begin + r, scratch.wide.data() + r * width);
}

void run(const Finish& job, int64_t begin, int64_t end, int part, int parts, Scratch& scratch) {
  const int64_t rows = end - begin, width = job.out.outputs, hidden = job.down.inputs;
  float* x = job.x + begin * width;
  static thread_local Rounded own_narrow, own_broad;
  own_narrow.resize(std::min<int64_t>(rows, kAlone), width), own_broad.resize(std::min<int64_t>(rows, kAlone), hidden);
  const Share narrow = share_of(rows, part, parts, scratch.narrow, parts == 1 ? scratch.narrow : own_narrow);
  const Share broad = share_of(rows, part, parts, scratch.broad, parts == 1 ? scratch.broad : own_broad);
  const int rounding = alone(rows, parts) ? 1 : parts;
  for (int64_t r = narrow.first; r < rows; r += narrow.step) round_heads(job, begin + r, narrow.mine, r);
  meet(rounding);
  product(narrow.mine, rows, job.out, part, parts, Add{x, width});
  meet(parts);
  for (int64_t r = narrow.first; r < rows; r += narrow.step) round_normed(x + r * width, job.norm, job.eps, narrow.mine, r);
  meet(rounding);
  product(narrow.mine, rows, job.gate_up, part, parts, Gate{scratch.wide.data(), hidden});
  meet(parts);
  for (int64_t r = broad.first; r < rows; r += broad.step) round_row(scratch.wide.data() + r * hidden, broad.mine, r);
  meet(rounding);
  product(broad.mine, rows, job.down, part, parts, Add{x, width});
}

void run(const ReadOut& job, int64_t begin, int64_t end, int part, int parts, Scratch& scratch) {
  for (int64_t r = begin + part; r < end; r += parts) {
    round_normed(job.x + r * job.weights.inputs, job.norm, job.eps, scratch.narrow, r - begin);
  }
  meet(parts);
  product(scratch.narrow, end - begin, job.weights, part, parts,
          Store{job.logits + begin * job.weights.outputs, job.weights.outputs});
  meet(parts);
}

void prepare(const Project& job, int64_t rows, Scratch& scratch) {
  scratch.narrow.resize(rows, job.weights.inputs);
  scratch.wide.resize(rows * job.weights.outputs);
}

void prepare(const Finish& job, int64_t rows, Scratch& scratch) {
  scratch.narrow.resize(rows, job.out.inputs);
  scratch.broad.resize(rows, job.down.inputs);
  scratch.wide.resize(rows * job.down.inputs);
}

void prepare(const ReadOut& job, int64_t rows, Scratch& scratch) { scratch.narrow.resize(rows, job.weights.inputs); }

}  // namespace
