// What leaves the ring goes into slots (`models/memory/slots.py`): the most important of old and new stay, in the order of the text.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "few.h"
#include "vectors.h"

// For the B sessions and r heads of one layer: S evicted tokens each. Keys in the ring are turned by their positions; what is kept of one
// is without rotation, with a trail of the keys before it where there are weights for one (`models.memory.look.Look.kept`).
struct Fold {
  const char *keys, *values;                   // the layer's ring in session 0, bfloat16
  int64_t session_stride, ring_head_stride;    // in bytes
  const int64_t* sessions;                     // see `Few`
  const int32_t* heads;                        // (r,)
  const int64_t* places;                       // (B, S) in the ring
  const float *cos, *sin;                      // (B, S, d / 2)
  const float* scores;                         // (B, r, S): -infinity for what nobody keeps
  int64_t score_stride;                        // from session to session, in numbers
  const int32_t* tokens;                       // (B, S)
  const int64_t* starts;                       // (B,): position of the first of them
  int64_t batch, number, length, slots, size, sinks;
  // What the r heads keep, in the state's tensors.
  int64_t kind;
  Stored far_keys, far_values;
  Lying score, position, token;
  Lying last;                                  // (sessions, r, trails, d) float32: the last keys of the segment before
  int64_t trails;
  const float *trail, *centre;                 // (r, trails, d), (r, d)
  // What each token stands behind, 0 for nothing: of the slots (sessions, r, slots), and of the new ones (B, S); null where nobody asks.
  Lying said;
  const int32_t* new_said;
};

namespace {

// Rooms for one thread.
struct Bench {
  std::vector<float> raw, kept, scores, worth;
  std::vector<int64_t> gone;
  std::vector<int32_t> newest;
};

inline char* at(const Lying& lying, int64_t session, int64_t head) { return const_cast<char*>(lying.of(session, head)); }

// Which of the old slots (below `old`) and of the new tokens (from `old` on) give way, in order: the least important, the newest first
// among equals. Those that nobody keeps are never counted.
inline void choose(const float* old_scores, int64_t old, const float* scores, int64_t length, int64_t slots, Bench& bench) {
  bench.gone.clear();
  bench.scores.clear();
  const auto score = [&](int64_t n) { return n < old ? old_scores[n] : scores[n - old]; };
  for (int64_t n = 0; n < old + length; ++n) {
    if (!(score(n) == -std::numeric_limits<float>::infinity())) bench.scores.push_back(score(n));
  }
  int64_t excess = (int64_t)bench.scores.size() - slots;
  if (excess <= 0) return;
  const auto less = [](float a, float b) { return a < b || (b != b && a == a); };  // what is no number is the greatest
  std::nth_element(bench.scores.begin(), bench.scores.begin() + excess - 1, bench.scores.end(), less);
  const float limit = bench.scores[excess - 1];
  std::vector<int64_t> equal;
  for (int64_t n = 0; n < old + length; ++n) {
    if (score(n) == -std::numeric_limits<float>::infinity()) continue;
    if (less(score(n), limit)) bench.gone.push_back(n), --excess;
    else if (!less(limit, score(n))) equal.push_back(n);
  }
  bench.gone.insert(bench.gone.end(), equal.end() - excess, equal.end());
  std::sort(bench.gone.begin(), bench.gone.end());
}

constexpr float kWorthless = -1e30f;  // WORTHLESS in models/memory/slots.py

// Whoever is followed by a newer token behind the same words is worth nothing from now on.
inline void forget_old(const int32_t* old_said, float* old_scores, int64_t old, const int32_t* said, float* scores, int64_t length,
                       std::vector<int32_t>& newest) {
  size_t room = 1;
  while (room < 2 * (size_t)length) room *= 2;
  newest.assign(room, 0);  // an open table of what the new ones stand behind
  const auto known = [&](int32_t what) -> int32_t& {
    size_t place = ((uint32_t)what * 2654435761u >> 7) & (room - 1);
    while (newest[place] != 0 && newest[place] != what) place = (place + 1) & (room - 1);
    return newest[place];
  };
  for (int64_t n = length - 1; n >= 0; --n) {
    if (said[n] == 0 || !(scores[n] > -std::numeric_limits<float>::infinity())) continue;
    int32_t& newer = known(said[n]);
    if (newer == said[n]) scores[n] = kWorthless;
    newer = said[n];
  }
  for (int64_t n = 0; n < old; ++n) {
    if (old_said[n] != 0 && known(old_said[n]) == old_said[n]) old_scores[n] = kWorthless;
  }
}

// Close the gaps that the old ones among `gone` leave.
inline void close_gaps(char* data, int64_t bytes, int64_t old, const std::vector<int64_t>& gone) {
  int64_t to = -1;
  for (size_t i = 0; i < gone.size() && gone[i] < old; ++i) {
    const int64_t begin = gone[i] + 1, end = i + 1 < gone.size() ? std::min(gone[i + 1], old) : old;
    if (to < 0) to = gone[i];
    std::memmove(data + to * bytes, data + begin * bytes, (end - begin) * bytes);
    to += end - begin;
  }
}

// Centre and spread of those of `length` vectors that count.
NATIVE inline void find_grid(const float* x, const float* scores, int64_t length, int64_t size, float* grid) {
  const auto counted = [&](int64_t n) { return !(scores[n] == -std::numeric_limits<float>::infinity()); };
  int64_t number = 0;
  for (int64_t n = 0; n < length; ++n) number += counted(n);
  if (number == 0) return;
  for (int64_t d = 0; d < size; ++d) grid[d] = grid[size + d] = 0;
  for (int64_t n = 0; n < length; ++n) {
    for (int64_t d = 0; d < size && counted(n); ++d) grid[d] += x[n * size + d];
  }
  for (int64_t d = 0; d < size; ++d) grid[d] /= number;
  for (int64_t n = 0; n < length; ++n) {
    for (int64_t d = 0; d < size && counted(n); ++d) grid[size + d] += (x[n * size + d] - grid[d]) * (x[n * size + d] - grid[d]);
  }
  for (int64_t d = 0; d < size; ++d) grid[size + d] = std::max(std::sqrt(grid[size + d] / number), 1e-6f);
}

// One vector as it lies in a slot.
NATIVE inline void put(const float* x, int64_t size, int64_t kind, const float* grid, const Stored& to, int64_t session, int64_t head,
                       int64_t slot) {
  char* codes = at(to.codes, session, head) + slot * (kind == kBfloat16 ? 2 * size : kind == kInt8 ? size : size / 2);
  if (kind == kBfloat16) {
    for (int64_t d = 0; d < size; d += 16) {
      _mm256_storeu_si256((__m256i*)codes + d / 16, (__m256i)_mm512_cvtneps_pbh(_mm512_loadu_ps(x + d)));
    }
    return;
  }
  float steps[256], greatest = 1e-12f;
  for (int64_t d = 0; d < size; ++d) {
    steps[d] = grid == nullptr ? x[d] : (x[d] - grid[d]) / grid[size + d];
    greatest = std::max(greatest, std::abs(steps[d]));
  }
  float scale = greatest / (kind == kInt4 ? 15 : 127);
  char* scales = at(to.scale, session, head);
  if (to.narrow) {
    const uint16_t rounded = (uint16_t)_mm_extract_epi16((__m128i)_mm_cvtneps_pbh(_mm_set_ss(scale)), 0);
    const uint32_t bits = (uint32_t)rounded << 16;
    std::memcpy(&scale, &bits, sizeof scale);  // what a reader will multiply by
    std::memcpy(scales + slot * 2, &rounded, 2);
  } else {
    std::memcpy(scales + slot * 4, &scale, 4);
  }
  if (kind == kInt8) {
    for (int64_t d = 0; d < size; ++d) codes[d] = (char)(int8_t)std::nearbyint(steps[d] / scale);
    return;
  }
  const auto code = [&](int64_t d) { return (int)std::min(15.0f, std::max(0.0f, std::nearbyint((steps[d] / scale + 15) / 2))); };
  for (int64_t d = 0; d < size / 2; ++d) codes[d] = (char)(code(d) | code(d + size / 2) << 4);
}

// Keys without rotation and with their trails into `bench.kept`; the last ones are noted for the next segment's.
NATIVE inline void lay_out_keys(const Fold& job, int64_t b, int64_t r, int64_t session, Bench& bench) {
  const int64_t size = job.size, half = size / 2, length = job.length, trails = job.trails;
  const char* ring = job.keys + session * job.session_stride + job.heads[r] * job.ring_head_stride;
  bench.raw.resize((trails + length) * size), bench.kept.resize(length * size);
  float* last = (float*)at(job.last, session, r);
  if (trails > 0) std::memcpy(bench.raw.data(), last, trails * size * sizeof(float));
  float* raw = bench.raw.data() + trails * size;
  for (int64_t n = 0; n < length; ++n) {
    const uint16_t* key = (const uint16_t*)ring + job.places[b * length + n] * size;
    const float *cos = job.cos + (b * length + n) * half, *sin = job.sin + (b * length + n) * half;
    for (int64_t d = 0; d < half; d += 16) {
      const __m512 first = widen(key + d), second = widen(key + half + d);
      const __m512 c = _mm512_loadu_ps(cos + d), s = _mm512_loadu_ps(sin + d);
      _mm512_storeu_ps(raw + n * size + d, _mm512_fmadd_ps(first, c, _mm512_mul_ps(second, s)));
      _mm512_storeu_ps(raw + n * size + half + d, _mm512_fmsub_ps(second, c, _mm512_mul_ps(first, s)));
    }
  }
  std::memcpy(bench.kept.data(), raw, length * size * sizeof(float));
  if (trails == 0) return;
  std::memcpy(last, raw + (length - trails) * size, trails * size * sizeof(float));
  for (int64_t n = 0; n < length; ++n) {
    for (int64_t o = std::max<int64_t>(0, trails - job.starts[b] - n); o < trails; ++o) {
      const float *weight = job.trail + (r * trails + o) * size, *before = raw + (n - trails + o) * size, *centre = job.centre + r * size;
      for (int64_t d = 0; d < size; d += 16) {
        const __m512 told = _mm512_sub_ps(_mm512_loadu_ps(before + d), _mm512_loadu_ps(centre + d));
        float* kept = bench.kept.data() + n * size + d;
        _mm512_storeu_ps(kept, _mm512_fmadd_ps(told, _mm512_loadu_ps(weight + d), _mm512_loadu_ps(kept)));
      }
    }
  }
}

NATIVE inline void lay_out_values(const Fold& job, int64_t b, int64_t r, int64_t session, Bench& bench) {
  const char* ring = job.values + session * job.session_stride + job.heads[r] * job.ring_head_stride;
  for (int64_t n = 0; n < job.length; ++n) {
    const uint16_t* value = (const uint16_t*)ring + job.places[b * job.length + n] * job.size;
    for (int64_t d = 0; d < job.size; d += 16) _mm512_storeu_ps(bench.kept.data() + n * job.size + d, widen(value + d));
  }
}

inline void fold(const Fold& job, int64_t b, int64_t r, Bench& bench) {
  const int64_t session = job.sessions == nullptr ? b : job.sessions[b], length = job.length, size = job.size;
  const float* scores = job.scores + b * job.score_stride + r * length;
  float* old_scores = (float*)at(job.score, session, r);
  int64_t old = 0;  // slots in use: they are filled from the front
  while (old < job.slots && !(old_scores[old] == -std::numeric_limits<float>::infinity())) ++old;
  int32_t* said = (int32_t*)at(job.said, session, r);
  if (said != nullptr) {
    bench.worth.assign(scores, scores + length);
    forget_old(said, old_scores, old, job.new_said + b * length, bench.worth.data(), length, bench.newest);
    scores = bench.worth.data();
  }
  choose(old_scores, old, scores, length, job.slots, bench);
  const int64_t code_bytes = job.kind == kBfloat16 ? 2 * size : job.kind == kInt8 ? size : size / 2;
  close_gaps((char*)old_scores, 4, old, bench.gone);
  close_gaps(at(job.position, session, r), 4, old, bench.gone);
  close_gaps(at(job.token, session, r), 4, old, bench.gone);
  if (said != nullptr) close_gaps((char*)said, 4, old, bench.gone);
  for (const Stored* stored : {&job.far_keys, &job.far_values}) {
    close_gaps(at(stored->codes, session, r), code_bytes, old, bench.gone);
    if (job.kind != kBfloat16) close_gaps(at(stored->scale, session, r), stored->narrow ? 2 : 4, old, bench.gone);
  }
  const auto in_new_slots = [&](const auto& use) {
    auto gone = std::lower_bound(bench.gone.begin(), bench.gone.end(), old);
    int64_t slot = old - (gone - bench.gone.begin());
    for (int64_t n = 0; n < length; ++n) {
      if (gone != bench.gone.end() && *gone == old + n) ++gone;
      else if (!(scores[n] == -std::numeric_limits<float>::infinity())) use(n, slot++);
    }
  };
  int32_t *position = (int32_t*)at(job.position, session, r), *token = (int32_t*)at(job.token, session, r);
  in_new_slots([&](int64_t n, int64_t slot) {
    old_scores[slot] = scores[n];
    position[slot] = (int32_t)(job.starts[b] + n);
    token[slot] = job.tokens[b * length + n];
    if (said != nullptr) said[slot] = job.new_said[b * length + n];
  });
  for (const Stored* stored : {&job.far_keys, &job.far_values}) {
    if (stored == &job.far_keys) lay_out_keys(job, b, r, session, bench);
    else lay_out_values(job, b, r, session, bench);
    float* grid = (float*)at(stored->grid, session, r);
    if (grid != nullptr && job.starts[b] <= job.sinks) find_grid(bench.kept.data(), scores, length, size, grid);
    in_new_slots([&](int64_t n, int64_t slot) {
      put(bench.kept.data() + n * size, size, job.kind, grid, *stored, session, r, slot);
    });
  }
}

}  // namespace
