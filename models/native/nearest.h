// Attention to the k keys that score highest, for memories of so many keys that a softmax over all of them would be blurred: an exact
// search, block by block of keys as in many.h, in which every query remembers what is above the k-th best it knows of.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "many.h"

namespace {

// What one query has found: `count` candidates, of which no more than the k best count, and the score that a new one must be above.
struct Candidates {
  float* scores;
  int32_t* places;
  int64_t count;
  float threshold;
};

// Candidates that are kept between two selections, beside a vector's worth that arrive at once.
inline int64_t room_for(int64_t nearest) { return 2 * nearest + 64; }

// Of the candidates the k best: of equal ones those that came first.
inline void select_best(Candidates& found, int64_t nearest, std::vector<std::pair<float, int32_t>>& sorted) {
  if (found.count <= nearest) return;
  sorted.resize(found.count);
  for (int64_t i = 0; i < found.count; ++i) sorted[i] = {-found.scores[i], found.places[i]};
  std::nth_element(sorted.begin(), sorted.begin() + nearest - 1, sorted.end());
  for (int64_t i = 0; i < nearest; ++i) found.scores[i] = -sorted[i].first, found.places[i] = sorted[i].second;
  found.count = nearest, found.threshold = -sorted[nearest - 1].first;
}

// The scores of a block of keys, the first of them at place `begin`.
NATIVE inline void sift(const float* scores, int64_t count, int64_t begin, int64_t nearest, Candidates& found,
                        std::vector<std::pair<float, int32_t>>& sorted) {
  const __m512i steps = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  for (int64_t n = 0; n < count; n += 16) {
    const __m512 score = _mm512_loadu_ps(scores + n);
    const __mmask16 better = _mm512_mask_cmp_ps_mask(inside_of(count, n), score, _mm512_set1_ps(found.threshold), _CMP_GT_OQ);
    if (better == 0) continue;
    if (found.count + 16 > room_for(nearest)) {
      select_best(found, nearest, sorted);
      n -= 16;  // the threshold has risen
      continue;
    }
    _mm512_mask_compressstoreu_ps(found.scores + found.count, better, score);
    const __m512i place = _mm512_add_epi32(_mm512_set1_epi32((int32_t)(begin + n)), steps);
    _mm512_mask_compressstoreu_epi32(found.places + found.count, better, place);
    found.count += __builtin_popcount(better);
  }
}

template <int R>
NATIVE inline void score_rows(const uint16_t* query, const Block& block, float* scores) {
  for (int64_t n = 0; n < block.width; n += kTile) {
    switch (std::min(kTile, block.width - n) / 16) {
      case 4: score_tile<R, 4>(query, block, n, scores); break;
      case 3: score_tile<R, 3>(query, block, n, scores); break;
      case 2: score_tile<R, 2>(query, block, n, scores); break;
      case 1: score_tile<R, 1>(query, block, n, scores); break;
    }
  }
}

// The softmax of a query's candidates, scaled, and what it makes of their values (size, float32); its log-sum-exp.
NATIVE inline float gather(const Candidates& found, Matrix values, int64_t size, float scale, float* out) {
  float peak = kNothing, sum = 0;
  for (int64_t i = 0; i < found.count; ++i) peak = std::max(peak, found.scores[i] * scale);
  std::fill(out, out + size, 0.0f);
  for (int64_t i = 0; i < found.count; ++i) {
    const float weight = std::exp(found.scores[i] * scale - peak);
    const uint16_t* value = values.data + found.places[i] * values.row;
    sum += weight;
    for (int64_t d = 0; d < size; d += 16) {
      _mm512_storeu_ps(out + d, _mm512_fmadd_ps(_mm512_set1_ps(weight), widen(value + d), _mm512_loadu_ps(out + d)));
    }
  }
  for (int64_t d = 0; d < size && sum > 0; ++d) out[d] /= sum;
  return peak + std::log(sum);
}

struct Nearest {
  std::vector<float> scores, kept;
  std::vector<int32_t> places;
  std::vector<Candidates> rows;
  std::vector<std::pair<float, int32_t>> sorted;
  Block block;

  // All of `number` queries (number, depth) over keys (count, depth) and values (count, size): out (number, size), mass (number,).
  void attend(const uint16_t* query, int64_t number, Matrix keys, Matrix values, int64_t count, int64_t depth, int64_t size,
              int64_t nearest, float scale, float* out, float* mass) {
    const int64_t room = room_for(nearest);
    kept.resize(number * room), places.resize(number * room), rows.resize(number);
    for (int64_t row = 0; row < number; ++row) rows[row] = {kept.data() + row * room, places.data() + row * room, 0, kNothing};
    in_blocks(count, [&](int64_t begin, int64_t end) {
      block.resize(depth, 0, end - begin);
      for (int64_t n = 0; n < block.width; n += 16) {
        pack_keys({keys.data + (begin + n) * keys.row, keys.row}, block.count - n, n, block);
      }
      scores.resize(kQueries * block.width);
      for (int64_t row = 0; row < number; row += kQueries) {
        const int64_t some = std::min<int64_t>(kQueries, number - row);
        const uint16_t* asked = query + row * depth;
        switch (some) {
          case 6: score_rows<6>(asked, block, scores.data()); break;
          case 5: score_rows<5>(asked, block, scores.data()); break;
          case 4: score_rows<4>(asked, block, scores.data()); break;
          case 3: score_rows<3>(asked, block, scores.data()); break;
          case 2: score_rows<2>(asked, block, scores.data()); break;
          case 1: score_rows<1>(asked, block, scores.data()); break;
        }
        for (int64_t r = 0; r < some; ++r) {
          sift(scores.data() + r * block.width, block.count, begin, nearest, rows[row + r], sorted);
        }
      }
    });
    for (int64_t row = 0; row < number; ++row) {
      select_best(rows[row], nearest, sorted);
      mass[row] = gather(rows[row], values, size, scale, out + row * size);
    }
  }
};

}  // namespace
