// What is written into a session's ring (`models/memory/ring.py`): new keys and values, and sinks at their new positions.

#pragma once

#include <cstdint>
#include <cstring>

#include "few.h"
#include "vectors.h"

// One layer's ring in session 0, bfloat16; strides in bytes; see `Few` for `sessions`.
struct Ring {
  char *keys, *values;
  int64_t session_stride, head_stride;
  const int64_t* sessions;
  int64_t batch, heads, size;
};

// Of B sessions t tokens each. Strides of `keys` and `values`, which are alike, are in elements: batch, head, row.
struct Written {
  Ring ring;
  const uint16_t *keys, *values;
  int64_t batch_stride, row_head_stride, row_stride;
  const int64_t* places;  // (B, t)
  int64_t length;
};

// Sinks that stand before the window anew. Rows that evict for the `first` time store them before: their keys without rotation, and their
// values, which are in the ring at `places`.
struct Moved {
  Ring ring;
  char* sinks;  // (sessions, ..., K, sinks, d) bfloat16
  int64_t sink_session_stride, sink_head_stride;
  const uint8_t* first;    // (B,)
  const int64_t* places;   // (B, width)
  const float *cos, *sin;  // (B, width, d / 2): the rotation of those places
  int64_t width;
  const float *new_cos, *new_sin;  // (B, count, d / 2)
  int64_t count;
};

namespace {

inline int64_t where(const Ring& ring, int64_t b, int64_t head) {
  return (ring.sessions == nullptr ? b : ring.sessions[b]) * ring.session_stride + head * ring.head_stride;
}

inline void write(const Written& job) {
  const int64_t bytes = job.ring.size * sizeof(uint16_t);
  for (int64_t b = 0; b < job.ring.batch; ++b) {
    for (int64_t head = 0; head < job.ring.heads; ++head) {
      const int64_t to = where(job.ring, b, head), from = b * job.batch_stride + head * job.row_head_stride;
      for (int64_t t = 0; t < job.length; ++t) {
        const int64_t place = job.places[b * job.length + t] * bytes;
        std::memcpy(job.ring.keys + to + place, job.keys + from + t * job.row_stride, bytes);
        std::memcpy(job.ring.values + to + place, job.values + from + t * job.row_stride, bytes);
      }
    }
  }
}

// A key turned by its position, `sign` = -1: back.
NATIVE inline void turn(const uint16_t* x, const float* cos, const float* sin, float sign, int64_t size, uint16_t* to) {
  const int64_t half = size / 2;
  for (int64_t d = 0; d < half; d += 16) {
    const __m512 first = widen(x + d), second = widen(x + half + d);
    const __m512 c = _mm512_loadu_ps(cos + d), s = _mm512_mul_ps(_mm512_loadu_ps(sin + d), _mm512_set1_ps(sign));
    const __m512 one = _mm512_fmsub_ps(first, c, _mm512_mul_ps(second, s));
    const __m512 other = _mm512_fmadd_ps(second, c, _mm512_mul_ps(first, s));
    _mm256_storeu_si256((__m256i*)(to + d), (__m256i)_mm512_cvtneps_pbh(one));
    _mm256_storeu_si256((__m256i*)(to + half + d), (__m256i)_mm512_cvtneps_pbh(other));
  }
}

NATIVE inline void move(const Moved& job) {
  const int64_t size = job.ring.size, half = size / 2, bytes = size * sizeof(uint16_t);
  for (int64_t b = 0; b < job.ring.batch; ++b) {
    for (int64_t head = 0; head < job.ring.heads; ++head) {
      const int64_t session = job.ring.sessions == nullptr ? b : job.ring.sessions[b], at = where(job.ring, b, head);
      uint16_t* sinks = (uint16_t*)(job.sinks + session * job.sink_session_stride + head * job.sink_head_stride);
      char *keys = job.ring.keys + at, *values = job.ring.values + at;
      for (int64_t n = 0; n < job.count; ++n) {
        if (job.first[b]) {
          const int64_t place = job.places[b * job.width + n] * bytes, table = (b * job.width + n) * half;
          turn((const uint16_t*)(keys + place), job.cos + table, job.sin + table, -1, size, sinks + n * size);
          std::memcpy(values + n * bytes, values + place, bytes);
        }
        const int64_t table = (b * job.count + n) * half;
        turn(sinks + n * size, job.new_cos + table, job.new_sin + table, 1, size, (uint16_t*)(keys + n * bytes));
      }
    }
  }
}

}  // namespace
