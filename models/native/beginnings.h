// What stands before a token in its sentence (`models/memory/beginnings.py`): one pass over what takes plain torch twenty operations.

#pragma once

#include <cstdint>

// Of B sessions t tokens each, and the sentences they go on.
struct Beginnings {
  const int64_t* tokens;    // (B, t)
  const uint8_t* ends;      // (vocabulary,)
  int64_t* sentence;        // (sessions, 3): polynomial, power less one, length
  const int64_t* sessions;  // see `Few`
  int64_t batch, length, least;
  uint64_t base, mix;
  int32_t* said;            // (B, t)
};

namespace {

inline void read(const Beginnings& job) {
  for (int64_t b = 0; b < job.batch; ++b) {
    int64_t* sentence = job.sentence + 3 * (job.sessions == nullptr ? b : job.sessions[b]);
    uint64_t known = (uint64_t)sentence[0], power = (uint64_t)sentence[1] + 1;
    int64_t length = sentence[2];
    for (int64_t t = 0; t < job.length; ++t) {
      const int64_t token = job.tokens[b * job.length + t];
      job.said[b * job.length + t] = length < job.least ? 0 : (int32_t)(uint32_t)(known * job.mix >> 32) | 1;
      known += (uint64_t)(token + 1) * power, power *= job.base, ++length;
      if (job.ends[token]) known = 0, power = 1, length = 0;
    }
    sentence[0] = (int64_t)known, sentence[1] = (int64_t)(power - 1), sentence[2] = length;
  }
}

}  // namespace
