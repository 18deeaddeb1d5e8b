// Tokens through neighbouring layers in one call: projection, ring, attention, network, what leaves the ring, and again.
//
// A plain C function, called through ctypes; see models/native/stack.py.

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <vector>

#include "dense.h"
#include "few.h"
#include "fold.h"
#include "look.h"
#include "many.h"
#include "ring.h"

// A layer's weights, and which of its heads keep something beyond the ring: r of them, whose parts of the state's tensors are
// neighbours, from `first` on.
struct StackLayer {
  const float *attention_norm, *mlp_norm;
  Packed qkv, out, gate_up, down;
  int64_t number, first;    // r; 0 where the layer sees nothing but the ring
  const int32_t* heads;     // (r,): which
  const int32_t* index;     // (kv_heads,): which of those r a head is, or -1
  const int32_t* order;     // (kv_heads,): those first
  // How they ask (`Look`); all null where they ask as they ask their neighbourhood.
  const float *sharpness, *offset, *eagerness, *lower, *upper, *centre, *trail, *gain, *slope, *steepness;
  const float* key_trail;   // (r, trails, size): what the keys before a kept one weigh
};

// What leaves the ring of F of the sessions once a step has passed, S tokens each; see `Fold` and `Moved`.
struct Leaving {
  int64_t count;             // F; 0 where nothing does
  const int64_t* sessions;   // (F,): see `Few`
  const int64_t* places;     // (F, S)
  const float *cos, *sin;    // (F, S, size / 2)
  const float* scores;       // (F, R, S), of all heads that keep something
  const int32_t *tokens, *said;  // (F, S)
  const int64_t* starts;     // (F,)
  const uint8_t* first;      // (F,)
  const float *sink_cos, *sink_sin;  // (F, sinks, size / 2)
  int64_t length;            // S
};

// B sessions that take in `length` tokens each. Strides are in bytes.
struct Step {
  float* x;                   // (B * length, inputs), in and out
  const StackLayer* layers;
  int64_t number;
  float eps;
  const float *cos, *sin;     // (B, trails + length, size / 2): the rotation of the tokens, and of those before
  const float *far_cos, *far_sin;  // (size / 2): of distance W
  char *keys, *values;        // the ring of session 0 in the first of the layers
  int64_t session_stride, layer_stride, head_stride;
  const int64_t* sessions;    // see `Few`
  const int64_t* positions;   // (B,): of the first of the tokens
  const int64_t* evicted;     // (B,): tokens that have left the ring
  int64_t sinks, ring;
  int64_t batch, length, heads, kv_heads, size, trails, rank;
  // What heads keep: all layers' tensors, (sessions, R, ...).
  int64_t kind;               // Kind
  Stored far_keys, far_values;
  const int64_t* far_counts;  // (B,)
  int64_t slots, far_total;   // of a head; R
  Lying score, position, token, said, last;
  char* sink_keys;            // (sessions, layers, K, sinks, size) bfloat16, of session 0 in the first of the layers; strides in bytes
  int64_t sink_session_stride, sink_layer_stride, sink_head_stride;
  Leaving leaving;
};

namespace {

constexpr int64_t kSearched = 16;  // below so many tokens a session, keys are better not packed first: FEW in joint.py
constexpr int64_t kShare = 64;     // rows that a thread takes at once, so that their hidden activations stay in the second cache

// What one of the threads of a team does of what they share. Processors are not equally fast all the time, so whoever is free takes the
// next task. Each counter serves every third round: that it is set back is seen by all before they need it again.
struct Turns {
  std::atomic<int64_t> taken[3] = {};
};

struct Hand {
  int part, parts;
  Turns& turns;
  int64_t round = 0;

  // All tasks; nobody goes on before they are done.
  template <class Use>
  void share(int64_t tasks, const Use& use) {
    if (tasks == 0) return;  // and so do all others
    if (part == 0) turns.taken[(round + 2) % 3] = 0;  // of the round before, which all have left
    for (int64_t task; (task = turns.taken[round % 3]++) < tasks;) use(task);
    ++round;
    meet(parts);
  }
};

// Where a step's tokens are in the ring, and what each of them sees of it: the same in all layers.
struct Plan {
  std::vector<uint16_t> bias;
  std::vector<uint8_t> tiles, known;
  std::vector<float> cos, sin;
  std::vector<int64_t> places;  // (B, trails + length)

  void make(const Step& step) {
    const int64_t half = step.size / 2, before = step.trails + step.length, groups = step.heads / step.kv_heads;
    const int64_t count = step.sinks + step.ring, rows = step.batch * step.length;
    for (auto* table : {&cos, &sin}) table->resize(rows * half);
    places.resize(step.batch * before), known.resize(places.size());
    bias.assign(rows * groups * count, 0xff80);  // -infinity
    for (int64_t b = 0; b < step.batch; ++b) {
      for (int64_t n = 0; n < before; ++n) {
        const int64_t position = step.positions[b] + n - step.trails;
        known[b * before + n] = position >= 0;
        places[b * before + n] = step.sinks + std::max<int64_t>(position, 0) % step.ring;
      }
      const int64_t bytes = step.length * half * sizeof(float), from = (b * before + step.trails) * half;
      std::memcpy(cos.data() + b * step.length * half, step.cos + from, bytes);
      std::memcpy(sin.data() + b * step.length * half, step.sin + from, bytes);
      for (int64_t t = 0; t < step.length; ++t) {
        uint16_t* row = bias.data() + (b * groups * step.length + t) * count;
        if (step.evicted[b] > 0) std::memset(row, 0, step.sinks * sizeof(uint16_t));
        const int64_t end = step.positions[b] + t + 1, begin = std::max(step.evicted[b], end - step.ring);
        for (int64_t position = begin; position < end; ++position) row[step.sinks + position % step.ring] = 0;
        for (int64_t g = 1; g < groups; ++g) std::memcpy(row + g * step.length * count, row, count * sizeof(uint16_t));
      }
    }
    if (step.length < kSearched) return;
    Few few{};
    few.bias = bias.data(), few.batch = step.batch, few.queries = groups * step.length, few.count = count;
    tiles.resize(few.batch * few.queries * tiles_of(count));
    survey(few, tiles.data());
  }
};

// Rows [begin, end) of a step, which a thread takes at once.
struct Stretch {
  int64_t step, begin, end;
};

// What threads share.
struct Board {
  Scratch scratch;
  std::vector<uint16_t> query, near, key, value, found, asked;
  std::vector<float> eager, slopes, parts;
  std::vector<Plan> plans;
  std::vector<int64_t> first;  // of each step: its first row among those of all
  std::vector<Stretch> shares;   // of the steps of many rows, the largest first
  Turns turns;

  static bool few(const Step& step, int64_t threads) { return step.batch * step.length < kFew * threads; }
  void resize(const Step* steps, int64_t count, int64_t threads);
  void share_out(const Step* steps, int64_t count, int64_t threads);
};

void write_ring(const Step& step, int64_t layer, const Plan& plan, const uint16_t* keys, const uint16_t* values, int64_t row) {
  const int64_t bytes = step.size * sizeof(uint16_t), b = row / step.length, t = row % step.length;
  const int64_t session = step.sessions == nullptr ? b : step.sessions[b];
  const int64_t place = plan.places[b * (step.trails + step.length) + step.trails + t];
  for (int64_t h = 0; h < step.kv_heads; ++h) {
    const int64_t from = ((b * step.kv_heads + h) * step.length + t) * step.size;
    const int64_t to = session * step.session_stride + layer * step.layer_stride + h * step.head_stride + place * bytes;
    std::memcpy(step.keys + to, keys + from, bytes);
    std::memcpy(step.values + to, values + from, bytes);
  }
}

Look look_of(const Step& step, int64_t index, const Plan& plan, const uint16_t* query, Board& board) {
  const StackLayer& layer = step.layers[index];
  const int64_t head = step.length * step.size;
  Look look{};
  look.query = query, look.batch_stride = step.heads * head, look.head_stride = head, look.row_stride = step.size;
  look.far_cos = step.far_cos, look.far_sin = step.far_sin;
  look.keys = step.keys + index * step.layer_stride, look.session_stride = step.session_stride, look.key_stride = step.head_stride;
  look.sessions = step.sessions, look.places = plan.places.data(), look.known = plan.known.data();
  look.cos = step.cos, look.sin = step.sin, look.heads = layer.heads;
  look.sharpness = layer.sharpness, look.offset = layer.offset, look.eagerness = layer.eagerness;
  look.down = layer.lower, look.up = layer.upper, look.centre = layer.centre, look.trail = layer.trail;
  look.gain = layer.gain, look.slope = layer.slope, look.steepness = layer.steepness;
  look.batch = step.batch, look.number = layer.number, look.groups = step.heads / step.kv_heads;
  look.length = step.length, look.size = step.size, look.trails = step.trails, look.rank = step.rank;
  look.asked = board.asked.data(), look.eager = board.eager.data(), look.slopes = board.slopes.data();
  return look;
}

Stored of_heads(Stored stored, int64_t first) {
  for (Lying* lying : {&stored.codes, &stored.scale, &stored.grid}) {
    if (lying->data != nullptr) lying->data += first * lying->head_stride;
  }
  return stored;
}

Few few_of(const Step& step, int64_t index, const Plan& plan, const uint16_t* query, uint16_t* found, Board& board) {
  const StackLayer& layer = step.layers[index];
  Few few{};
  few.query = query, few.out = found;
  few.keys = step.keys + index * step.layer_stride, few.values = step.values + index * step.layer_stride;
  few.batch_stride = step.session_stride, few.head_stride = step.head_stride, few.sessions = step.sessions;
  few.bias = plan.bias.data(), few.tiles = plan.tiles.data(), few.batch = step.batch, few.heads = step.kv_heads;
  few.queries = step.heads / step.kv_heads * step.length, few.count = step.sinks + step.ring, few.size = step.size;
  if (layer.number == 0) return few;
  few.far_heads = layer.index, few.far_number = layer.number, few.kind = step.kind;
  few.far_query = board.asked.data(), few.far_counts = step.far_counts;
  few.far_keys = of_heads(step.far_keys, layer.first), few.far_values = of_heads(step.far_values, layer.first);
  if (layer.sharpness != nullptr) few.offset = board.eager.data(), few.slope = board.slopes.data();
  return few;
}

// So many parts of every task give each thread as much to do as the others have.
int64_t parts_of(const Few& few, int64_t threads) { return tasks_of(few) >= 8 * threads ? 1 : threads; }

Fold fold_of(const Step& step, int64_t index) {
  const StackLayer& layer = step.layers[index];
  const Leaving& leaving = step.leaving;
  const auto of_layer = [&](Lying lying) { return lying.data += layer.first * lying.head_stride, lying; };
  Fold fold{};
  fold.keys = step.keys + index * step.layer_stride, fold.values = step.values + index * step.layer_stride;
  fold.session_stride = step.session_stride, fold.ring_head_stride = step.head_stride;
  fold.sessions = leaving.sessions, fold.heads = layer.heads, fold.places = leaving.places;
  fold.cos = leaving.cos, fold.sin = leaving.sin, fold.tokens = leaving.tokens, fold.starts = leaving.starts;
  fold.scores = leaving.scores + layer.first * leaving.length, fold.score_stride = step.far_total * leaving.length;
  fold.batch = leaving.count, fold.number = layer.number, fold.length = leaving.length;
  fold.slots = step.slots, fold.size = step.size, fold.sinks = step.sinks, fold.kind = step.kind;
  fold.far_keys = of_heads(step.far_keys, layer.first), fold.far_values = of_heads(step.far_values, layer.first);
  fold.score = of_layer(step.score), fold.position = of_layer(step.position), fold.token = of_layer(step.token);
  if (step.said.data != nullptr) fold.said = of_layer(step.said), fold.new_said = leaving.said;
  if (layer.key_trail == nullptr) return fold;
  fold.last = of_layer(step.last), fold.trails = step.trails, fold.trail = layer.key_trail, fold.centre = layer.centre;
  return fold;
}

Moved moved_of(const Step& step, int64_t index) {
  const Leaving& leaving = step.leaving;
  Moved moved{};
  moved.ring = {step.keys + index * step.layer_stride, step.values + index * step.layer_stride, step.session_stride, step.head_stride,
                leaving.sessions, leaving.count, step.kv_heads, step.size};
  moved.sinks = step.sink_keys + index * step.sink_layer_stride;
  moved.sink_session_stride = step.sink_session_stride, moved.sink_head_stride = step.sink_head_stride;
  moved.first = leaving.first, moved.places = leaving.places, moved.cos = leaving.cos, moved.sin = leaving.sin;
  moved.width = leaving.length, moved.new_cos = leaving.sink_cos, moved.new_sin = leaving.sink_sin, moved.count = step.sinks;
  return moved;
}

// One step in one layer: from `row` on its rows lie among those of all steps.
struct Turn {
  const Step& step;
  int64_t index, row;
  const Plan& plan;
  Board& board;

  int64_t rows() const { return step.batch * step.length; }
  const StackLayer& layer() const { return step.layers[index]; }

  template <class T>
  T* heads(std::vector<T>& of_all) const { return of_all.data() + row * step.heads * step.size; }
  template <class T>
  T* kv_heads(std::vector<T>& of_all) const { return of_all.data() + row * step.kv_heads * step.size; }

  Project project() const {
    return {step.x, layer().attention_norm, step.eps, layer().qkv, plan.cos.data(), plan.sin.data(), step.heads, step.kv_heads, step.size,
            step.length, rows(), heads(board.query), heads(board.near), kv_heads(board.key), kv_heads(board.value)};
  }

  Finish finish() const {
    const int64_t head = step.length * step.size;
    return {step.x, heads(board.found), step.heads * head, head, step.size, step.length, step.size, rows(),
            layer().out, layer().mlp_norm, step.eps, layer().gate_up, layer().down};
  }

  void write(int64_t begin, int64_t end) const {
    for (int64_t r = begin; r < end; ++r) write_ring(step, index, plan, kv_heads(board.key), kv_heads(board.value), r);
  }
};

// What tokens find in ring and memory: their projections are there, and in the ring.
void attend(const Turn& turn, Hand& hand) {
  static thread_local std::vector<float> buffer;
  static thread_local Desk desk;
  const Step& step = turn.step;
  Board& board = turn.board;
  const int64_t part = hand.part, parts = hand.parts;
  if (turn.layer().number > 0) {
    const Look asking = look_of(step, turn.index, turn.plan, turn.heads(board.query), board);
    hand.share(tasks_of(asking), [&](int64_t task) { look(asking, task, buffer); });
  }
  const Few attention = few_of(step, turn.index, turn.plan, turn.heads(board.near), turn.heads(board.found), board);
  if (step.length < kSearched) {
    const int64_t pieces = parts_of(attention, parts), room = room_of(attention);
    for (int64_t piece = part; piece < tasks_of(attention) * pieces; piece += parts) {
      search(attention, piece / pieces, piece % pieces, pieces, buffer, board.parts.data() + piece * room);
    }
    meet(parts);
    for (int64_t task = part; task < tasks_of(attention); task += parts) {
      join(attention, task, board.parts.data() + task * pieces * room, pieces);
    }
    meet(parts);
    return;
  }
  // Heads that look far take longest, and begin.
  const int64_t pairs = attention.batch * attention.heads, pieces = (2 * parts + pairs - 1) / pairs;
  hand.share(pairs * pieces, [&](int64_t task) {
    const int64_t pair = task / pieces;
    const Span span = rows_of_part(attention.queries, task % pieces, pieces);
    attend_many(attention, pair % attention.batch, turn.layer().order[pair / attention.batch], span.begin, span.end, desk);
  });
}

// What leaves the ring behind a step, in tasks: a head each of those that keep something, and the ring's own.
struct Leave {
  const Turn& turn;
  Fold folding{};
  int64_t folds = 0, tasks = 0;

  explicit Leave(const Turn& turn) : turn(turn) {
    if (turn.step.leaving.count == 0) return;
    folding = fold_of(turn.step, turn.index);
    folds = folding.batch * folding.number, tasks = folds + 1;
  }

  void operator()(int64_t task) const {
    static thread_local Bench bench;
    if (task < folds) fold(folding, task / folding.number, task % folding.number, bench);
    else move(moved_of(turn.step, turn.index));
  }
};

// What all threads of a team do with one layer of all steps. Each has come from the one before.
//
// Steps of many rows meet only where one sees what the one before has put into ring and memory: what is made of their rows before and
// after that is shared out for all of them at once.
void run(const Step* steps, int64_t count, int64_t index, Board& board, Hand& hand) {
  static thread_local Scratch scratch;
  const int64_t part = hand.part, parts = hand.parts, shares = board.shares.size();
  const auto turn_of = [&](int64_t n) { return Turn{steps[n], index, board.first[n], board.plans[n], board}; };
  const auto few = [&](int64_t n) { return board.few(steps[n], parts); };

  hand.share(shares, [&](int64_t task) {
    const Stretch& share = board.shares[task];
    const Project project = turn_of(share.step).project();
    prepare(project, share.end - share.begin, scratch);
    run(project, share.begin, share.end, 0, 1, scratch);
    if (share.step == 0) turn_of(0).write(share.begin, share.end);
  });
  for (int64_t n = 0; n < count; ++n) {
    const Turn turn = turn_of(n);
    const int64_t rows = turn.rows();
    if (few(n)) {
      run(turn.project(), 0, rows, part, parts, board.scratch);
      for (int64_t row = part; row < rows; row += parts) turn.write(row, row + 1);  // as rows were shared out before
      meet(parts);
    } else if (n > 0) {
      hand.share(parts, [&](int64_t task) { turn.write(rows * task / parts, rows * (task + 1) / parts); });
    }
    attend(turn, hand);
    const Leave leave(turn);
    if (few(n)) {
      hand.share(leave.tasks, leave);
      run(turn.finish(), 0, rows, part, parts, board.scratch);
      meet(parts);
    } else if (n + 1 < count) {
      hand.share(leave.tasks, leave);
    }
  }
  // What the last one's ring gives up and what the network makes of what was found do not meet.
  const Turn last = turn_of(count - 1);
  const Leave leave(last);
  const int64_t leaving = few(count - 1) ? 0 : leave.tasks;
  hand.share(leaving + shares, [&](int64_t task) {
    if (task < leaving) return leave(task);
    const Stretch& share = board.shares[task - leaving];
    const Finish finish = turn_of(share.step).finish();
    prepare(finish, share.end - share.begin, scratch);
    run(finish, share.begin, share.end, 0, 1, scratch);
  });
}

void Board::resize(const Step* steps, int64_t count, int64_t threads) {
  const StackLayer& any = steps[0].layers[0];
  int64_t fewest = 0, most = 0, all = 0, room = 0;
  first.clear();
  for (const Step* step = steps; step < steps + count; ++step) {
    const int64_t rows = step->batch * step->length;
    first.push_back(all);
    all += rows, most = std::max(most, rows);
    if (few(*step, threads)) fewest = std::max(fewest, rows);
    if (step->length < kSearched) {
      Few job{};
      job.batch = step->batch, job.heads = step->kv_heads, job.queries = step->heads / step->kv_heads * step->length, job.size = step->size;
      room = std::max(room, tasks_of(job) * threads * room_of(job));
    }
  }
  scratch.narrow.resize(fewest, any.qkv.inputs);
  scratch.broad.resize(fewest, any.down.inputs);
  scratch.wide.resize(fewest * std::max(any.qkv.outputs, any.down.inputs));
  for (auto* heads : {&query, &near, &found}) heads->resize(all * steps[0].size * steps[0].heads);
  for (auto* heads : {&key, &value}) heads->resize(all * steps[0].size * steps[0].kv_heads);
  asked.resize(most * steps[0].size * steps[0].heads);
  for (auto* each : {&eager, &slopes}) each->resize(most * steps[0].heads);
  parts.resize(room);
  if ((int64_t)plans.size() < count) plans.resize(count);
  share_out(steps, count, threads);
}

// As many shares as threads can take alike, none of many more rows than `kShare`, and of whole groups of rows but for the last.
void Board::share_out(const Step* steps, int64_t count, int64_t threads) {
  std::vector<int64_t> wanted(count);
  int64_t total = 0;
  for (int64_t n = 0; n < count; ++n) {
    wanted[n] = few(steps[n], threads) ? 0 : (steps[n].batch * steps[n].length + kShare - 1) / kShare;
    total += wanted[n];
  }
  for (int64_t n = 0; total % threads != 0; n = (n + 1) % count) {
    if (wanted[n] > 0) ++wanted[n], ++total;
  }
  shares.clear();
  for (int64_t n = 0; n < count; ++n) {
    const int64_t rows = steps[n].batch * steps[n].length, groups = (rows + kRows - 1) / kRows;
    for (int64_t i = 0; i < wanted[n]; ++i) {
      const int64_t begin = groups * i / wanted[n] * kRows, end = std::min(rows, groups * (i + 1) / wanted[n] * kRows);
      if (begin < end) shares.push_back({n, begin, end});
    }
  }
  std::stable_sort(shares.begin(), shares.end(), [](const Stretch& a, const Stretch& b) { return a.end - a.begin > b.end - b.begin; });
}

void run(const Step* steps, int64_t count, Board& board, int part, int parts) {
  Hand hand{part, parts, board.turns};
  hand.share(count, [&](int64_t index) { board.plans[index].make(steps[index]); });
  for (int64_t layer = 0; layer < steps[0].number; ++layer) run(steps, count, layer, board, hand);
}

}  // namespace

// Steps of the same sessions and layers, one behind the other: each layer takes all of them before the next one does.
extern "C" void palimpsest_steps(const Step* steps, int64_t count, int32_t threads) {
  static thread_local Board shared;
  Board& board = shared;
  board.resize(steps, count, std::max(threads, 1));
  for (auto& taken : board.turns.taken) taken = 0;
  if (threads == 1) return run(steps, count, board, 0, 1);
#pragma omp parallel num_threads(threads)
  run(steps, count, board, omp_get_thread_num(), omp_get_num_threads());
}

#endif
