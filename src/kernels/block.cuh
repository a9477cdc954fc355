// A kernel in phases, for a GPU and for a C++ compiler.
//
// The body of EACH_THREAD is what every thread of a block does from one barrier to the next. nvcc runs it once in each
// thread and ends it with a barrier; a C++ compiler makes it a loop over the threads, so that tests run the arithmetic of
// the same source without a GPU, in both orders, as a GPU promises none.
// Invariants: a value that outlives a phase lies in SHARED memory, and no phase reads what another thread of the same
// phase writes. Every operation has one rounding: no contraction (-fmad=false, -ffp-contract=off), fused multiply-adds
// are written out, and division and square root are those of IEEE 754.
#pragma once

// Threads of a block. `launch.rs` cuts its grids by it.
constexpr unsigned THREADS = 128;

#ifdef __CUDACC__

#define KERNEL extern "C" __global__ void __launch_bounds__(THREADS)
#define DEVICE static __device__ __forceinline__
#define SHARED __shared__
#define EACH_THREAD(thread) for (unsigned thread = threadIdx.x, pending = 1; pending; pending = 0, __syncthreads())

#else

#include <cmath>
#include <cstddef>
struct Block {
    unsigned x, y;
};
static Block blockIdx;
static bool is_backwards;
#define KERNEL static void
#define DEVICE static inline
#define SHARED static
#define EACH_THREAD(thread) \
    for (unsigned turn = 0, thread = is_backwards ? THREADS - 1 : 0; turn < THREADS; ++turn, thread = is_backwards ? THREADS - 1 - turn : turn)

#endif
