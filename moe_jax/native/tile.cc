// The tile, in the manner of BLIS (Van Zee and van de Geijn 2015): both factors are copied into panels in the order in
// which the innermost loop reads them, and that loop keeps its part of the result in registers.
//
// Compiled once for each instruction set, with TILE as the function's name.

#include "tile.h"

#include <cstring>

namespace moe_jax {
namespace {

// kMaxRows * 2 vectors of results, two of the right factor and one of the left fill the registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kMaxRows = 14;
#elif defined(__AVX__)
constexpr int kLanes = 8, kMaxRows = 6;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kMaxRows = 12;
#else
constexpr int kLanes = 4, kMaxRows = 6;
#endif

constexpr int kColumns = 2 * kLanes;
constexpr int64_t kDepth = 512;
// A row of a left panel is a cache line longer than its contents, so that rows do not compete for a set of the cache.
constexpr int64_t kLeftStride = kDepth + 16;
// The length of a column of a transposed left panel.
constexpr int64_t kLeftColumn = 16;
constexpr int64_t kAtOnce = 4;
constexpr int64_t kRightPanels = 128 * 1024;
constexpr int64_t kLeftPanels = 96 * 1024;

static_assert(kMaxRows <= kLeftColumn);
static_assert(kMaxRows * kLeftStride <= kLeftPanels);
static_assert(kRightPanels + kLeftPanels + kMaxRows * kColumns <= kScratch);

typedef float Vector __attribute__((vector_size(kLanes * 4)));
typedef float Unaligned __attribute__((vector_size(kLanes * 4), aligned(4)));

inline Vector Load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
inline void Store(float* to, Vector v) { *reinterpret_cast<Unaligned*>(to) = v; }

inline int64_t Least(int64_t a, int64_t b) { return a < b ? a : b; }

// out[kRows, kColumns] (+)= left * right, where left(i, k) is left[i * kRowStep + k * kDepthStep].
template <int kRows, int64_t kRowStep, int64_t kDepthStep>
void Multiply(const float* left, const float* right, int64_t depth, float* out, int64_t out_width, bool add) {
  Vector sum[kRows][2];
#pragma unroll
  for (int i = 0; i < kRows; ++i) sum[i][0] = sum[i][1] = Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector right0 = *reinterpret_cast<const Vector*>(right + k * kColumns);
    const Vector right1 = *reinterpret_cast<const Vector*>(right + k * kColumns + kLanes);
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const float value = left[i * kRowStep + k * kDepthStep];
      sum[i][0] += value * right0;
      sum[i][1] += value * right1;
    }
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    float* row = out + i * out_width;
    Store(row, add ? Load(row) + sum[i][0] : sum[i][0]);
    Store(row + kLanes, add ? Load(row + kLanes) + sum[i][1] : sum[i][1]);
  }
}

using MultiplyFunction = void (*)(const float*, const float*, int64_t, float*, int64_t, bool);

template <int64_t kRowStep, int64_t kDepthStep, int kRows = kMaxRows>
MultiplyFunction MultiplyOf(int64_t rows) {
  if constexpr (kRows == 1) {
    return Multiply<1, kRowStep, kDepthStep>;
  } else {
    return rows == kRows ? Multiply<kRows, kRowStep, kDepthStep> : MultiplyOf<kRowStep, kDepthStep, kRows - 1>(rows);
  }
}

// One step of transposing kLanes vectors: elements that are kStep off the diagonal are swapped.
template <int kStep, int... kLane>
inline void Exchange(Vector& a, Vector& b) {
  const Vector low = __builtin_shufflevector(a, b, ((kLane & kStep) ? kLanes + kLane - kStep : kLane)...);
  b = __builtin_shufflevector(a, b, ((kLane & kStep) ? kLanes + kLane : kLane + kStep)...);
  a = low;
}

template <int kStep, int... kLane>
inline void ExchangeLanes(Vector& a, Vector& b) {
  if constexpr (sizeof...(kLane) < kLanes) {
    ExchangeLanes<kStep, kLane..., static_cast<int>(sizeof...(kLane))>(a, b);
  } else {
    Exchange<kStep, kLane...>(a, b);
  }
}

template <int kStep = 1>
inline void Transpose(Vector* v) {
  if constexpr (kStep < kLanes) {
#pragma unroll
    for (int i = 0; i < kLanes; ++i) {
      if (!(i & kStep)) ExchangeLanes<kStep>(v[i], v[i + kStep]);
    }
    Transpose<kStep * 2>(v);
  }
}

// Panels [depth, kColumns] of the right factor, from its row k0 and column n0; columns past the last are zeros.
void PackRight(const Tile& t, int64_t k0, int64_t depth, int64_t n0, int64_t columns, float* panels) {
  // A few panels at once, so that a row is read in pieces long enough for the processor to fetch ahead.
  for (int64_t some = 0; some < columns; some += kAtOnce * kColumns) {
    const int64_t past = Least(columns, some + kAtOnce * kColumns);
    for (int64_t k = 0; k < depth; ++k) {
      const float* from = t.right.row(t.right_row + k0 + k) + t.right_column + n0;
      for (int64_t n = some; n < past; n += kColumns) {
        float* to = panels + n * depth + k * kColumns;
        if (columns - n >= kColumns) {
          Store(to, Load(from + n));
          Store(to + kLanes, Load(from + n + kLanes));
        } else {
          for (int64_t i = 0; i < kColumns; ++i) to[i] = n + i < columns ? from[n + i] : 0.f;
        }
      }
    }
  }
}

// One panel of a transposed right factor.
void PackRightTransposed(const Tile& t, int64_t k0, int64_t depth, int64_t n0, int64_t columns, float* panel) {
  for (int64_t half = 0; half < kColumns; half += kLanes) {
    const float* from = t.right.data + (t.right_row + n0 + half) * t.right.width + t.right_column + k0;
    float* to = panel + half;
    int64_t k = 0;
    for (; columns >= half + kLanes && k + kLanes <= depth; k += kLanes) {
      Vector v[kLanes];
#pragma unroll
      for (int n = 0; n < kLanes; ++n) v[n] = Load(from + n * t.right.width + k);
      Transpose(v);
#pragma unroll
      for (int i = 0; i < kLanes; ++i) *reinterpret_cast<Vector*>(to + (k + i) * kColumns) = v[i];
    }
    for (; k < depth; ++k) {
      for (int n = 0; n < kLanes; ++n) to[k * kColumns + n] = half + n < columns ? from[n * t.right.width + k] : 0.f;
    }
  }
}

// One panel of the left factor: rows m0 to m0 + rows, from its column k0.
void PackLeft(const Tile& t, int64_t m0, int64_t rows, int64_t k0, int64_t depth, float* panel) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* from = t.left.row(t.left_row + m0 + i) + t.left_column + k0;
    float* to = panel + i * kLeftStride;
    int64_t k = 0;
    for (; k + kLanes <= depth; k += kLanes) Store(to + k, Load(from + k));
    for (; k < depth; ++k) to[k] = from[k];
  }
}

// All panels [depth, kLeftColumn] of a transposed left factor, from row k0 of the stored matrix.
void PackLeftTransposed(const Tile& t, int64_t panels, int64_t k0, int64_t depth, float* left) {
  for (int64_t k = 0; k < depth; ++k) {
    const float* row = t.left.row(t.left_row + k0 + k);
    for (int64_t p = 0; p < panels; ++p) {
      const int64_t column = t.left_column + t.rows * p / panels;
      float* to = left + (p * depth + k) * kLeftColumn;
      // Whole vectors if the row has them, including values that this panel does not use.
      if (column + kLeftColumn <= t.left.width) {
#pragma unroll
        for (int64_t i = 0; i < kLeftColumn; i += kLanes) Store(to + i, Load(row + column + i));
      } else {
        for (int64_t i = 0; column + i < t.left.width; ++i) to[i] = row[column + i];
      }
    }
  }
}

// Fetches rows of the result, which are not in order, while the product is computed.
void Prefetch(const Tile& t, int64_t m0, int64_t rows, int64_t n0) {
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = t.out.row(t.out_row + m0 + i) + t.out_column + n0;
    for (int64_t n = 0; n < kColumns; n += 16) __builtin_prefetch(row + n, 1);
  }
}

// out rows m0 to m0 + rows, from column n0 (+)= part[rows, kColumns], of which `columns` are real.
void Deliver(const Tile& t, int64_t m0, int64_t rows, int64_t n0, int64_t columns, const float* part, bool add) {
  for (int64_t i = 0; i < rows; ++i, part += kColumns) {
    float* to = t.out.row(t.out_row + m0 + i) + t.out_column + n0;
    if (columns >= kColumns) {
      for (int64_t n = 0; n < kColumns; n += kLanes) Store(to + n, add ? Load(to + n) + Load(part + n) : Load(part + n));
    } else {
      for (int64_t n = 0; n < columns; ++n) to[n] = part[n] + (add ? to[n] : 0.f);
    }
  }
}

void Clear(const Tile& t) {
  for (int64_t m = 0; m < t.rows; ++m) {
    std::memset(t.out.row(t.out_row + m) + t.out_column, 0, t.columns * sizeof(float));
  }
}

}  // namespace

void TILE(const Tile& t, float* scratch) {
  float* const right = scratch;
  float* const left = right + kRightPanels;
  float* const part = left + kLeftPanels;
  if (t.depth == 0 && !t.add) Clear(t);
  const int64_t panels = (t.rows + kMaxRows - 1) / kMaxRows;
  const int64_t most = t.left_transposed ? Least(kDepth, kLeftPanels / (panels * kLeftColumn)) : kDepth;
  const int64_t chunks = (t.depth + most - 1) / most;
  for (int64_t c = 0; c < chunks; ++c) {
    const int64_t k0 = t.depth * c / chunks, depth = t.depth * (c + 1) / chunks - k0;
    const bool add = t.add || k0 > 0;
    if (t.left_transposed) PackLeftTransposed(t, panels, k0, depth, left);
    const int64_t wide = kRightPanels / depth / kColumns * kColumns;
    for (int64_t n0 = 0; n0 < t.columns; n0 += wide) {
      const int64_t columns = Least(wide, t.columns - n0);
      if (t.right_transposed) {
        for (int64_t n = 0; n < columns; n += kColumns) {
          PackRightTransposed(t, k0, depth, n0 + n, columns - n, right + n * depth);
        }
      } else {
        PackRight(t, k0, depth, n0, columns, right);
      }
      for (int64_t p = 0; p < panels; ++p) {
        // Rows are divided evenly: a short last panel would keep few of the registers busy.
        const int64_t m0 = t.rows * p / panels, rows = t.rows * (p + 1) / panels - m0;
        if (!t.left_transposed) PackLeft(t, m0, rows, k0, depth, left);
        const float* panel = t.left_transposed ? left + p * depth * kLeftColumn : left;
        const MultiplyFunction multiply =
            t.left_transposed ? MultiplyOf<1, kLeftColumn>(rows) : MultiplyOf<kLeftStride, 1>(rows);
        for (int64_t n = 0; n < columns; n += kColumns) {
          if (!t.out.index && columns - n >= kColumns) {
            float* out = t.out.row(t.out_row + m0) + t.out_column + n0 + n;
            multiply(panel, right + n * depth, depth, out, t.out.width, add);
          } else {
            if (add) Prefetch(t, m0, rows, n0 + n);
            multiply(panel, right + n * depth, depth, part, kColumns, false);
            Deliver(t, m0, rows, n0 + n, columns - n, part, add);
          }
        }
      }
    }
  }
}

}  // namespace moe_jax
