// How slots are asked for (`models/memory/look.py`): one pass over what takes plain torch dozens.

#pragma once

#include "few.h"

// For the B sessions and r key/value heads of one layer. Parameters are (r, …) without gaps, float32, as in `models.memory.look.Look`;
// where there are none, a query asks for what it asks its neighbourhood for.
struct Look {
  const uint16_t* query;                      // (B, H, t, d), without rotation
  int64_t batch_stride, head_stride, row_stride;  // of it, in elements
  const float *far_cos, *far_sin;             // (d / 2): the rotation of distance W
  const char* keys;                           // the layer's ring in session 0
  int64_t session_stride, key_stride;         // in bytes: from session to session, from head to head
  const int64_t* sessions;                    // see `Few`
  const int64_t* places;                      // (B, trail + t): where the queries' own keys are, and those before
  const float *cos, *sin;                     // (B, trail + t, d / 2): their rotation
  const uint8_t* known;                       // (B, trail + t)
  const int32_t* heads;                       // (r,)
  const float *sharpness, *offset, *eagerness, *down, *up, *centre, *trail, *gain, *slope, *steepness;
  int64_t batch, number, groups, length, size, trails, rank;
  uint16_t* asked;                            // (B, r, G, t, d)
  float *eager, *slopes;                      // (B, r, G, t)
};

namespace {

constexpr int64_t kSpan = 32;  // queries of a task

NATIVE void look(const Look& job, int64_t task, std::vector<float>& buffer) {
  const int64_t spans = (job.length + kSpan - 1) / kSpan, size = job.size, half = size / 2;
  const int64_t b = task / spans / job.number, r = task / spans % job.number, begin = task % spans * kSpan;
  const int64_t end = std::min(job.length, begin + kSpan), count = job.trails + job.length;
  buffer.resize((job.trails + kSpan + 3) * size);
  float *told = buffer.data(), *trail = told + (job.trails + kSpan) * size, *x = trail + size, *y = x + size;
  const int64_t session = job.sessions == nullptr ? b : job.sessions[b], head = job.heads[r];
  const char* ring = job.keys + session * job.session_stride + head * job.key_stride;
  const float* centre = job.centre + r * size;
  for (int64_t n = begin; job.sharpness != nullptr && n < end - 1 + job.trails; ++n) {
    float* to = told + (n - begin) * size;
    const int64_t at = b * count + n;
    if (!job.known[at]) {
      for (int64_t d = 0; d < size; ++d) to[d] = 0;
      continue;
    }
    const uint16_t* key = (const uint16_t*)ring + job.places[at] * size;
    for (int64_t d = 0; d < half; d += 16) {  // the rotation is taken off
      const __m512 first = widen(key + d), second = widen(key + half + d);
      const __m512 c = _mm512_loadu_ps(job.cos + at * half + d), s = _mm512_loadu_ps(job.sin + at * half + d);
      const __m512 one = _mm512_fmadd_ps(first, c, _mm512_mul_ps(second, s));
      const __m512 other = _mm512_fmsub_ps(second, c, _mm512_mul_ps(first, s));
      _mm512_storeu_ps(to + d, _mm512_sub_ps(one, _mm512_loadu_ps(centre + d)));
      _mm512_storeu_ps(to + half + d, _mm512_sub_ps(other, _mm512_loadu_ps(centre + half + d)));
    }
  }
  const float scale = 1 / std::sqrt((float)size);
  const float* weights = job.trail + r * job.trails * size;
  for (int64_t t = begin; t < end; ++t) {
    for (int64_t d = 0; d < size && job.sharpness != nullptr; d += 16) {
      __m512 sum = _mm512_setzero_ps();
      for (int64_t o = 0; o < job.trails; ++o) {
        sum = _mm512_fmadd_ps(_mm512_loadu_ps(told + (t - begin + o) * size + d), _mm512_loadu_ps(weights + o * size + d), sum);
      }
      _mm512_storeu_ps(trail + d, sum);
    }
    for (int64_t g = 0; g < job.groups; ++g) {
      const int64_t own = r * job.groups + g, to = (((b * job.number + r) * job.groups + g) * job.length) + t;
      const uint16_t* query = job.query + b * job.batch_stride + (head * job.groups + g) * job.head_stride + t * job.row_stride;
      for (int64_t d = 0; d < half; d += 16) {
        const __m512 first = widen(query + d), second = widen(query + half + d);
        const __m512 c = _mm512_loadu_ps(job.far_cos + d), s = _mm512_loadu_ps(job.far_sin + d);
        const __m256i one = (__m256i)_mm512_cvtneps_pbh(_mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s)));
        const __m256i other = (__m256i)_mm512_cvtneps_pbh(_mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s)));
        if (job.sharpness == nullptr) {
          _mm256_storeu_si256((__m256i*)(job.asked + to * size + d), one);
          _mm256_storeu_si256((__m256i*)(job.asked + to * size + half + d), other);
          continue;
        }
        _mm512_storeu_ps(x + d, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(one), 16)));
        _mm512_storeu_ps(x + half + d, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(other), 16)));
      }
      if (job.sharpness == nullptr) continue;
      const __m512 sharp = _mm512_set1_ps(job.sharpness[own]);
      for (int64_t d = 0; d < size; d += 16) {
        const __m512 told_too = _mm512_mul_ps(_mm512_loadu_ps(trail + d), _mm512_loadu_ps(job.gain + own * size + d));
        _mm512_storeu_ps(y + d, _mm512_fmadd_ps(_mm512_loadu_ps(x + d), sharp, told_too));
      }
      for (int64_t k = 0; k < job.rank; ++k) {
        float low = 0;
        for (int64_t d = 0; d < size; ++d) low += x[d] * job.down[(own * size + d) * job.rank + k];
        const __m512 share = _mm512_set1_ps(low);
        const float* up = job.up + (own * job.rank + k) * size;
        for (int64_t d = 0; d < size; d += 16) {
          _mm512_storeu_ps(y + d, _mm512_fmadd_ps(share, _mm512_loadu_ps(up + d), _mm512_loadu_ps(y + d)));
        }
      }
      for (int64_t d = 0; d < size; d += 16) {
        _mm256_storeu_si256((__m256i*)(job.asked + to * size + d), (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(y + d)));
      }
      job.eager[to] = scale * dot(x, job.eagerness + own * size, size) + job.offset[own];
      job.slopes[to] = scale * dot(x, job.slope + own * size, size) + job.steepness[own];
    }
  }
}

inline int64_t tasks_of(const Look& job) { return job.batch * job.number * ((job.length + kSpan - 1) / kSpan); }

}  // namespace
