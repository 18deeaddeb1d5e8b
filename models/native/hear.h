// What a token is worth to the heads that keep slots, foretold from a hidden vector (`models.memory.importance.Learned`).

#pragma once

#include <cmath>
#include <cstdint>

#include "few.h"
#include "vectors.h"

// Of B sessions `length` tokens each. All is float32.
struct Hear {
  const float* hidden;              // (B, length, width), rows without gaps
  int64_t batch_stride, row_stride;  // in elements
  const int64_t* positions;         // (B, length)
  const float *down, *offset, *up;  // (units, width), (units,), (heads, units)
  float* noted;                     // (sessions, places, heads)
  const int64_t* sessions;          // see `Few`
  int64_t batch, length, width, units, heads, places;
  float eps;
};

namespace {

constexpr int64_t kUnits = 256;  // at most

NATIVE inline void hear(const Hear& job, int64_t row) {
  const int64_t b = row / job.length, session = job.sessions == nullptr ? b : job.sessions[b];
  const float* x = job.hidden + b * job.batch_stride + row % job.length * job.row_stride;
  const float inverse = 1 / std::sqrt(dot(x, x, job.width) / job.width + job.eps);
  float units[kUnits];
  for (int64_t u = 0; u < job.units; ++u) {
    const float sum = inverse * dot(x, job.down + u * job.width, job.width) + job.offset[u];
    units[u] = sum / (1 + std::exp(-sum));
  }
  float* to = job.noted + (session * job.places + job.positions[row] % job.places) * job.heads;
  for (int64_t h = 0; h < job.heads; ++h) to[h] = dot(units, job.up + h * job.units, job.units);
}

}  // namespace
