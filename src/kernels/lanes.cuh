// Sums by lanes: threads that share a sum, each with every sixteenth value, as `LANES` of slices.rs has it.
#pragma once
#include "block.cuh"

constexpr unsigned LANES = 16;
// Sums that a block works on. `launch.rs` cuts its grids by it.
constexpr unsigned BLOCK_SUMS = THREADS / LANES;
