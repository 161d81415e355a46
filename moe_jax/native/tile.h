// A tile: the part of one expert's float32 matrix product that one thread computes at a time.

#pragma once

#include <cstdint>

namespace moe_jax {

// Rows of a matrix, in order or as an index picks them.
struct Rows {
  float* data;
  int64_t width;         // floats from one row to the next
  const int32_t* index;  // nullptr: in order

  float* row(int64_t i) const { return data + (index ? index[i] : i) * width; }
};

// out(m, n) (+)= sum over k of left(m, k) * right(k, n), for m < rows, n < columns, k < depth.
struct Tile {
  // left(m, k) is row left_row + m and column left_column + k of `left`, or, transposed, row left_row + k and column
  // left_column + m; right(k, n) is row right_row + k and column right_column + n, or, transposed, row right_row + n and
  // column right_column + k; out(m, n) is row out_row + m and column out_column + n. A transposed right factor has no
  // index.
  Rows left, right, out;
  int64_t left_row, left_column;
  int64_t right_row, right_column;
  int64_t out_row, out_column;
  int64_t rows, columns, depth;
  bool left_transposed, right_transposed;
  bool add;  // whether to add to out; else it is overwritten, with zeros if depth is 0
};

// Floats of scratch memory that a tile needs, aligned to 64 bytes; the contents do not matter.
constexpr int64_t kScratch = 228 * 1024;

using TileFunction = void (*)(const Tile&, float* scratch);

// One for each instruction set that tile.cc is compiled for.
void TileAvx512(const Tile&, float*);
void TileAvx2(const Tile&, float*);
void TileBaseline(const Tile&, float*);

}  // namespace moe_jax
