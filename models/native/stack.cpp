// Few tokens through neighbouring layers in one call: projection, ring, attention, network, and again.
//
// A plain C function, called through ctypes; see models/native/stack.py.

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)

#include <omp.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "dense.h"
#include "few.h"
#include "look.h"

// A layer's weights, and which of its heads keep something beyond the ring: r of them, whose parts of the state's tensors are
// neighbours, from `first` on.
struct StackLayer {
  const float *attention_norm, *mlp_norm;
  Packed qkv, out, gate_up, down;
  int64_t number, first;    // r; 0 where the layer sees nothing but the ring
  const int32_t* heads;     // (r,): which
  const int32_t* index;     // (kv_heads,): which of those r a head is, or -1
  // How they ask (`Look`); all null where they ask as they ask their neighbourhood.
  const float *sharpness, *offset, *eagerness, *lower, *upper, *centre, *trail, *gain, *slope, *steepness;
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
};

namespace {

// What threads share, and what is the same in all layers.
struct Board {
  Scratch scratch;
  std::vector<uint16_t> query, near, key, value, found, asked, bias;
  std::vector<float> cos, sin, eager, slopes, parts;
  std::vector<int64_t> places;  // (B, trails + length)
  std::vector<uint8_t> known;

  void resize(const Step& step) {
    const int64_t rows = step.batch * step.length, numbers = rows * step.size;
    const StackLayer& any = step.layers[0];
    scratch.narrow.resize(rows, any.qkv.inputs);
    scratch.broad.resize(rows, any.down.inputs);
    scratch.wide.resize(rows * std::max(any.qkv.outputs, any.down.inputs));
    for (auto* heads : {&query, &near, &found, &asked}) heads->resize(numbers * step.heads);
    for (auto* heads : {&key, &value}) heads->resize(numbers * step.kv_heads);
    for (auto* each : {&eager, &slopes}) each->resize(rows * step.heads);
    for (auto* table : {&cos, &sin}) table->resize(rows * (step.size / 2));
    places.resize(step.batch * (step.trails + step.length)), known.resize(places.size());
    bias.assign(rows * (step.heads / step.kv_heads) * (step.sinks + step.ring), 0xff80);  // -infinity
  }

  // Where tokens are in the ring, and what each of them sees of it.
  void plan(const Step& step) {
    const int64_t half = step.size / 2, before = step.trails + step.length, groups = step.heads / step.kv_heads;
    const int64_t count = step.sinks + step.ring;
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
  }
};

void write_ring(const Step& step, int64_t layer, const Board& board, int64_t row) {
  const int64_t bytes = step.size * sizeof(uint16_t), b = row / step.length, t = row % step.length;
  const int64_t session = step.sessions == nullptr ? b : step.sessions[b];
  const int64_t place = board.places[b * (step.trails + step.length) + step.trails + t];
  for (int64_t h = 0; h < step.kv_heads; ++h) {
    const int64_t from = ((b * step.kv_heads + h) * step.length + t) * step.size;
    const int64_t to = session * step.session_stride + layer * step.layer_stride + h * step.head_stride + place * bytes;
    std::memcpy(step.keys + to, board.key.data() + from, bytes);
    std::memcpy(step.values + to, board.value.data() + from, bytes);
  }
}

Look look_of(const Step& step, int64_t index, Board& board) {
  const StackLayer& layer = step.layers[index];
  const int64_t head = step.length * step.size;
  Look look{};
  look.query = board.query.data(), look.batch_stride = step.heads * head, look.head_stride = head, look.row_stride = step.size;
  look.far_cos = step.far_cos, look.far_sin = step.far_sin;
  look.keys = step.keys + index * step.layer_stride, look.session_stride = step.session_stride, look.key_stride = step.head_stride;
  look.sessions = step.sessions, look.places = board.places.data(), look.known = board.known.data();
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

Few few_of(const Step& step, int64_t index, Board& board) {
  const StackLayer& layer = step.layers[index];
  Few few{};
  few.query = board.near.data(), few.out = board.found.data();
  few.keys = step.keys + index * step.layer_stride, few.values = step.values + index * step.layer_stride;
  few.batch_stride = step.session_stride, few.head_stride = step.head_stride, few.sessions = step.sessions;
  few.bias = board.bias.data(), few.batch = step.batch, few.heads = step.kv_heads;
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

void run(const Step& step, int part, int parts, Board& board) {
  static thread_local std::vector<float> buffer;
  const int64_t rows = step.batch * step.length, head = step.length * step.size;
  for (int64_t index = 0; index < step.number; ++index) {
    const StackLayer& layer = step.layers[index];
    const Project project{step.x, layer.attention_norm, step.eps, layer.qkv, board.cos.data(), board.sin.data(), step.heads,
                          step.kv_heads, step.size, step.length, rows, board.query.data(), board.near.data(), board.key.data(),
                          board.value.data()};
    run(project, 0, rows, part, parts, board.scratch);
    for (int64_t row = part; row < rows; row += parts) write_ring(step, index, board, row);  // as rows were shared out before
    meet(parts);
    if (layer.number > 0) {
      const Look asking = look_of(step, index, board);
      for (int64_t task = part; task < tasks_of(asking); task += parts) look(asking, task, buffer);
      meet(parts);
    }
    const Few few = few_of(step, index, board);
    const int64_t pieces = parts_of(few, parts), room = room_of(few);
    for (int64_t piece = part; piece < tasks_of(few) * pieces; piece += parts) {
      search(few, piece / pieces, piece % pieces, pieces, buffer, board.parts.data() + piece * room);
    }
    meet(parts);
    for (int64_t task = part; task < tasks_of(few); task += parts) join(few, task, board.parts.data() + task * pieces * room, pieces);
    meet(parts);
    const Finish finish{step.x, board.found.data(), step.heads * head, head, step.size, step.length, step.size, rows,
                        layer.out, layer.mlp_norm, step.eps, layer.gate_up, layer.down};
    run(finish, 0, rows, part, parts, board.scratch);
    meet(parts);
  }
}

}  // namespace

extern "C" void palimpsest_step(const Step* step, int32_t threads) {
  static thread_local Board shared;
  Board& board = shared;
  board.resize(*step);
  board.plan(*step);
  const Few any = few_of(*step, 0, board);
  board.parts.resize(tasks_of(any) * std::max<int64_t>(threads, 1) * room_of(any));
  if (threads == 1) return run(*step, 0, 1, board);
#pragma omp parallel num_threads(threads)
  run(*step, omp_get_thread_num(), omp_get_num_threads(), board);
}

#endif
