// Calls for the dense half of a layer (`dense.h`), and for what its attention is made of (`beginnings.h`, `few.h`, `fold.h`,
// `hear.h`, `look.h`, `ring.h`).
//
// Plain C functions, called through ctypes; see models/native/beginnings.py, dense.py, joint.py, fold.py, hear.py, look.py and ring.py.

#include <cstdint>

#if defined(__x86_64__) && defined(__GNUC__)

#include <omp.h>

#include <algorithm>
#include <vector>

#include "beginnings.h"
#include "dense.h"
#include "few.h"
#include "fold.h"
#include "hear.h"
#include "look.h"
#include "ring.h"

namespace {

// Few rows: all threads take all of them, and a part of the outputs each. Many: each takes rows of its own.
template <class Job>
void share(const Job& job, int threads) {
  if (job.rows < (int64_t)kFew * threads) {
    static thread_local Scratch shared;
    Scratch& scratch = shared;
    prepare(job, job.rows, scratch);
    if (threads == 1) return run(job, 0, job.rows, 0, 1, scratch);
#pragma omp parallel num_threads(threads)
    run(job, 0, job.rows, omp_get_thread_num(), omp_get_num_threads(), scratch);
    return;
  }
  const int64_t groups = (job.rows + kRows - 1) / kRows;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local Scratch scratch;
    prepare(job, kBlock, scratch);
    const int64_t part = omp_get_thread_num(), parts = omp_get_num_threads();
    const int64_t end = std::min(job.rows, groups * (part + 1) / parts * kRows);
    for (int64_t row = groups * part / parts * kRows; row < end; row += kBlock) {
      run(job, row, std::min(end, row + kBlock), 0, 1, scratch);
    }
  }
}

}  // namespace

extern "C" void palimpsest_project(const Project* job, int32_t threads) { share(*job, threads); }

extern "C" void palimpsest_finish(const Finish* job, int32_t threads) { share(*job, threads); }

extern "C" void palimpsest_read_out(const ReadOut* job, int32_t threads) { share(*job, threads); }

extern "C" void palimpsest_attend_few(const Few* job, int32_t threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local std::vector<float> buffer, found;
    found.resize(room_of(*job));
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < tasks_of(*job); ++task) {
      search(*job, task, 0, 1, buffer, found.data());
      join(*job, task, found.data(), 1);
    }
  }
}

extern "C" void palimpsest_look(const Look* job, int32_t threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    static thread_local std::vector<float> buffer;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < tasks_of(*job); ++task) look(*job, task, buffer);
  }
}

extern "C" void palimpsest_fold(const Fold* job, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
  for (int64_t task = 0; task < job->batch * job->number; ++task) {
    static thread_local Bench bench;
    fold(*job, task / job->number, task % job->number, bench);
  }
}

extern "C" void palimpsest_hear(const Hear* job, int32_t threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1 && job->batch * job->length > 16)
  for (int64_t row = 0; row < job->batch * job->length; ++row) hear(*job, row);
}

extern "C" void palimpsest_write_ring(const Written* job) { write(*job); }

extern "C" void palimpsest_move_sinks(const Moved* job) { move(*job); }

extern "C" void palimpsest_read_beginnings(const Beginnings* job) { read(*job); }

#endif
