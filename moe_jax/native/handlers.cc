// Grouped matrix products for XLA:CPU, as handlers of its foreign function interface.
//
// A assignments sorted by expert, T tokens, E experts, M and N widths. `sizes` [E] is the number of sorted rows of each
// expert; rows past their sum belong to no expert. An empty index stands for all rows in order.

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "tile.h"
#include "xla/ffi/api/c_api.h"

namespace moe_jax {
namespace {

#if defined(__x86_64__)
// Zig's __builtin_cpu_supports is always false.
bool HasFeatures(bool avx512) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  const bool saves = c & bit_OSXSAVE, fma = c & bit_FMA;
  if (!saves || !fma) return false;
  unsigned low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  if (!avx512) return (low & 0x6) == 0x6 && (b & bit_AVX2);
  const unsigned wanted = bit_AVX512F | bit_AVX512CD | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  return (low & 0xe6) == 0xe6 && (b & wanted) == wanted;
}

// MOE_JAX_CPU selects less than the processor has, `avx2` or `baseline`, so that one machine can test all variants.
TileFunction FindBestTile() {
  const char* asked = getenv("MOE_JAX_CPU");
  if (asked && !strcmp(asked, "baseline")) return TileBaseline;
  if (HasFeatures(true) && !(asked && !strcmp(asked, "avx2"))) return TileAvx512;
  return HasFeatures(false) ? TileAvx2 : TileBaseline;
}
#else
TileFunction FindBestTile() { return TileBaseline; }
#endif

// Found once: in a virtual machine asking the processor takes a while.
TileFunction BestTile() {
  static TileFunction best = nullptr;
  TileFunction tile = __atomic_load_n(&best, __ATOMIC_RELAXED);
  if (!tile) __atomic_store_n(&best, tile = FindBestTile(), __ATOMIC_RELAXED);
  return tile;
}

// Pieces of work that threads take in turn. A helper may start after all work is done, so the last thread that holds
// the job frees it.
struct Job {
  void (*work)(void* context, int64_t piece, float* scratch);
  void* context;
  int64_t pieces;
  int64_t next;     // first piece that no thread has taken
  int64_t done;     // pieces that are finished
  int64_t holders;  // threads that may still read the job
  bool failed;      // memory ran out
  pthread_mutex_t mutex;
  pthread_cond_t finished;
};

void Release(Job* job) {
  if (__atomic_sub_fetch(&job->holders, 1, __ATOMIC_ACQ_REL) > 0) return;
  pthread_mutex_destroy(&job->mutex);
  pthread_cond_destroy(&job->finished);
  free(job);
}

void Work(Job* job) {
  void* scratch = nullptr;
  int64_t mine = 0;
  for (;;) {
    const int64_t piece = __atomic_fetch_add(&job->next, 1, __ATOMIC_ACQ_REL);
    if (piece >= job->pieces) break;
    if (!scratch && posix_memalign(&scratch, 64, kScratch * sizeof(float))) {
      __atomic_store_n(&job->failed, true, __ATOMIC_RELEASE);
    } else {
      job->work(job->context, piece, static_cast<float*>(scratch));
    }
    ++mine;
  }
  free(scratch);
  if (mine) {
    pthread_mutex_lock(&job->mutex);
    job->done += mine;
    if (job->done == job->pieces) pthread_cond_signal(&job->finished);
    pthread_mutex_unlock(&job->mutex);
  }
}

void Help(void* job) {
  Work(static_cast<Job*>(job));
  Release(static_cast<Job*>(job));
}

// The call of a handler: its arguments and results, and the threads that run it.
class Call {
 public:
  explicit Call(XLA_FFI_CallFrame* frame) : frame_(frame) {}

  const XLA_FFI_Buffer& argument(int i) const { return *static_cast<XLA_FFI_Buffer*>(frame_->args.args[i]); }
  const XLA_FFI_Buffer& result(int i = 0) const { return *static_cast<XLA_FFI_Buffer*>(frame_->rets.rets[i]); }
  int arguments() const { return static_cast<int>(frame_->args.size); }

  int64_t threads() const {
    int64_t threads = 1;
    XLA_FFI_ThreadPool_NumThreads_Args args = {};
    args.struct_size = XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE;
    args.ctx = frame_->ctx;
    args.num_threads = &threads;
    if (XLA_FFI_Error* error = frame_->api->XLA_FFI_ThreadPool_NumThreads(&args)) {
      Destroy(error);
      return 1;
    }
    return threads < 1 ? 1 : threads;
  }

  // Runs all pieces, on this thread and on free threads of XLA's pool; no thread waits for another to start.
  template <typename F>
  XLA_FFI_Error* Share(int64_t pieces, F& work) const {
    if (pieces == 0) return nullptr;
    Job* job = static_cast<Job*>(calloc(1, sizeof(Job)));
    if (!job) return Error("out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
    job->work = [](void* context, int64_t piece, float* scratch) { (*static_cast<F*>(context))(piece, scratch); };
    job->context = &work;
    job->pieces = pieces;
    pthread_mutex_init(&job->mutex, nullptr);
    pthread_cond_init(&job->finished, nullptr);
    const int64_t all = threads(), helpers = (all < pieces ? all : pieces) - 1;
    job->holders = helpers + 1;
    for (int64_t i = 0; i < helpers; ++i) {
      XLA_FFI_ThreadPool_Schedule_Args args = {};
      args.struct_size = XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE;
      args.ctx = frame_->ctx;
      args.task = Help;
      args.data = job;
      if (XLA_FFI_Error* error = frame_->api->XLA_FFI_ThreadPool_Schedule(&args)) {
        Destroy(error);
        Release(job);
      }
    }
    Work(job);
    pthread_mutex_lock(&job->mutex);
    while (job->done < pieces) pthread_cond_wait(&job->finished, &job->mutex);
    pthread_mutex_unlock(&job->mutex);
    const bool failed = __atomic_load_n(&job->failed, __ATOMIC_ACQUIRE);
    Release(job);
    return failed ? Error("out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED) : nullptr;
  }

  XLA_FFI_Error* Error(const char* message, XLA_FFI_Error_Code code) const {
    XLA_FFI_Error_Create_Args args = {};
    args.struct_size = XLA_FFI_Error_Create_Args_STRUCT_SIZE;
    args.message = message;
    args.errc = code;
    return frame_->api->XLA_FFI_Error_Create(&args);
  }

 private:
  void Destroy(XLA_FFI_Error* error) const {
    XLA_FFI_Error_Destroy_Args args = {};
    args.struct_size = XLA_FFI_Error_Destroy_Args_STRUCT_SIZE;
    args.error = error;
    frame_->api->XLA_FFI_Error_Destroy(&args);
  }

  XLA_FFI_CallFrame* frame_;
};

Rows Matrix(const XLA_FFI_Buffer& values, const XLA_FFI_Buffer& index) {
  const int32_t* picked = index.dims[0] ? static_cast<const int32_t*>(index.data) : nullptr;
  return {static_cast<float*>(values.data), values.dims[values.rank - 1], picked};
}

Rows Matrix(const XLA_FFI_Buffer& values) {
  return {static_cast<float*>(values.data), values.dims[values.rank - 1], nullptr};
}

int64_t Pieces(int64_t size, int64_t most) { return (size + most - 1) / most; }

// A part of one expert's work.
struct Part {
  int64_t expert, start, size;  // the expert, its first row, and the number of its rows
  int64_t first, last;          // the share, from `first` to before `last`
};

// The number of rows that belong to experts.
int64_t Total(const int32_t* sizes, int64_t experts) {
  int64_t total = 0;
  for (int64_t e = 0; e < experts; ++e) total += sizes[e];
  return total;
}

XLA_FFI_Error* TooManyRows(const Call& call) {
  return call.Error("the sum of sizes is larger than the number of rows", XLA_FFI_Error_Code_INVALID_ARGUMENT);
}

// Runs work(part, scratch) for every expert e: the range from 0 to extent_of(e), divided evenly into parts_of(e) parts.
template <typename PartsOf, typename ExtentOf, typename F>
XLA_FFI_Error* ShareByExpert(const Call& call, const int32_t* sizes, int64_t experts, PartsOf parts_of,
                             ExtentOf extent_of, F work) {
  int64_t pieces = 0;
  for (int64_t e = 0; e < experts; ++e) pieces += parts_of(e);
  Part* parts = static_cast<Part*>(malloc((pieces + 1) * sizeof(Part)));
  if (!parts) return call.Error("out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  int64_t next = 0, start = 0;
  for (int64_t e = 0; e < experts; start += sizes[e++]) {
    const int64_t count = parts_of(e), extent = extent_of(e);
    for (int64_t p = 0; p < count; ++p) {
      parts[next++] = {e, start, sizes[e], extent * p / count, extent * (p + 1) / count};
    }
  }
  auto run = [&](int64_t piece, float* scratch) { work(parts[piece], scratch); };
  XLA_FFI_Error* error = call.Share(pieces, run);
  free(parts);
  return error;
}

// The most rows, of `total`, in one piece of work: few enough that threads finish at about the same time.
int64_t RowsOfPiece(int64_t total, int64_t threads) {
  const int64_t even = total / (4 * threads);
  return even < 64 ? 64 : even > 256 ? 256 : even;
}

// y [A, N] = x[index[a]] @ w[expert of a], x [T, M], w [E, M, N]; transposed: w [E, N, M].
XLA_FFI_Error* Product(const Call& call, bool transposed) {
  const TileFunction tile = BestTile();
  const Rows x = Matrix(call.argument(0), call.argument(3)), w = Matrix(call.argument(1)), y = Matrix(call.result());
  const int64_t experts = call.argument(1).dims[0], rows = call.result().dims[0];
  const int32_t* sizes = static_cast<const int32_t*>(call.argument(2).data);
  const int64_t total = Total(sizes, experts);
  if (total > rows) return TooManyRows(call);
  memset(y.row(total), 0, (rows - total) * y.width * sizeof(float));
  const int64_t most = RowsOfPiece(rows, call.threads());
  auto parts_of = [&](int64_t e) { return Pieces(sizes[e], most); };
  auto extent_of = [&](int64_t e) { return sizes[e]; };
  auto work = [&](const Part& part, float* scratch) {
    Tile t = {};
    t.left = x, t.right = w, t.out = y;
    t.left_row = t.out_row = part.start + part.first;
    t.rows = part.last - part.first, t.columns = y.width, t.depth = x.width;
    t.right_transposed = transposed;
    t.right.data += part.expert * x.width * y.width;
    tile(t, scratch);
  };
  return ShareByExpert(call, sizes, experts, parts_of, extent_of, work);
}

// y [T, N], y[index[a]] += x[a] @ w[expert of a], summed over pairs of x [A, M] and w [E, M, N]; transposed: w [E, N, M].
// Threads divide the columns, so that no two add to one value, and the order of sums is always the same.
XLA_FFI_Error* ProductSum(const Call& call, bool transposed) {
  const TileFunction tile = BestTile();
  const Rows y = Matrix(call.result(), call.argument(1));
  const int64_t rows = call.result().dims[0], pairs = (call.arguments() - 2) / 2;
  const int32_t* sizes = static_cast<const int32_t*>(call.argument(0).data);
  const int64_t experts = call.argument(0).dims[0];
  if (Total(sizes, experts) > call.argument(2).dims[0]) return TooManyRows(call);
  const int64_t narrow = Pieces(y.width, 32), wanted = call.threads(), pieces = narrow < wanted ? narrow : wanted;
  auto work = [&](int64_t piece, float* scratch) {
    const int64_t first = narrow * piece / pieces * 32, past = narrow * (piece + 1) / pieces * 32;
    const int64_t columns = (past < y.width ? past : y.width) - first;
    for (int64_t i = 0; i < rows; ++i) memset(y.data + i * y.width + first, 0, columns * sizeof(float));
    int64_t start = 0;
    for (int64_t e = 0; e < experts; start += sizes[e++]) {
      for (int64_t pair = 0; pair < pairs; ++pair) {
        Tile t = {};
        t.left = Matrix(call.argument(2 + 2 * pair)), t.right = Matrix(call.argument(3 + 2 * pair)), t.out = y;
        t.left_row = t.out_row = start;
        t.out_column = first;
        (transposed ? t.right_row : t.right_column) = first;
        t.rows = sizes[e], t.columns = columns, t.depth = t.left.width;
        t.right_transposed = transposed;
        t.right.data += e * t.left.width * y.width;
        t.add = true;
        tile(t, scratch);
      }
    }
  };
  return call.Share(pieces, work);
}

// w [E, M, N], w[e] = sum over the rows a of e of x[left[a]]^T y[right[a]]; zeros where e has none.
XLA_FFI_Error* Outer(const Call& call) {
  const TileFunction tile = BestTile();
  const Rows x = Matrix(call.argument(0), call.argument(3)), y = Matrix(call.argument(1), call.argument(4));
  const Rows w = Matrix(call.result());
  const int32_t* sizes = static_cast<const int32_t*>(call.argument(2).data);
  const int64_t experts = call.result().dims[0];
  const XLA_FFI_Buffer& sorted = x.index ? call.argument(3) : call.argument(0);
  const int64_t total = Total(sizes, experts);
  if (total > sorted.dims[0]) return TooManyRows(call);
  // A matrix is one piece, so that y is copied once, unless that is more than a thread's even share of the rows.
  const int64_t fair = total / (2 * call.threads()) + 1, narrow = Pieces(x.width, 256), thin = Pieces(x.width, 32);
  auto parts_of = [&](int64_t e) {
    const int64_t shares = narrow * Pieces(sizes[e], fair);
    return shares < narrow ? narrow : shares < thin ? shares : thin;
  };
  auto extent_of = [&](int64_t) { return x.width; };
  auto work = [&](const Part& part, float* scratch) {
    Tile t = {};
    t.left = x, t.right = y, t.out = w;
    t.left_row = t.right_row = part.start;
    t.left_column = part.first;
    t.out_row = part.expert * x.width + part.first;
    t.rows = part.last - part.first, t.columns = w.width, t.depth = part.size;
    t.left_transposed = true;
    tile(t, scratch);
  };
  return ShareByExpert(call, sizes, experts, parts_of, extent_of, work);
}

// Counting sort of keys [N]; a negative key excludes an element. Results: the place of each element in order [N], the
// element at each place [N], both -1 for none, and the number of elements with each key [K]. Elements with the same key
// keep their order.
XLA_FFI_Error* Sort(const Call& call) {
  const int32_t* key = static_cast<const int32_t*>(call.argument(0).data);
  int32_t* place = static_cast<int32_t*>(call.result(0).data);
  int32_t* element = static_cast<int32_t*>(call.result(1).data);
  int32_t* sizes = static_cast<int32_t*>(call.result(2).data);
  const int64_t count = call.argument(0).dims[0], keys = call.result(2).dims[0];
  memset(sizes, 0, keys * sizeof(int32_t));
  for (int64_t i = 0; i < count; ++i) {
    if (key[i] >= keys) return call.Error("a key is larger than num_keys - 1", XLA_FFI_Error_Code_INVALID_ARGUMENT);
    if (key[i] >= 0) ++sizes[key[i]];
  }
  int32_t* next = static_cast<int32_t*>(malloc((keys + 1) * sizeof(int32_t)));
  if (!next) return call.Error("out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  next[0] = 0;
  for (int64_t k = 0; k < keys; ++k) next[k + 1] = next[k] + sizes[k];
  for (int64_t i = next[keys]; i < count; ++i) element[i] = -1;
  for (int64_t i = 0; i < count; ++i) {
    place[i] = key[i] < 0 ? -1 : next[key[i]]++;
    if (place[i] >= 0) element[place[i]] = static_cast<int32_t>(i);
  }
  free(next);
  return nullptr;
}

// For each element [N], the number of earlier elements with the same key that count; from keys [N], not negative, and
// whether each element counts [N].
XLA_FFI_Error* Rank(const Call& call) {
  const int32_t* key = static_cast<const int32_t*>(call.argument(0).data);
  const bool* counts = static_cast<const bool*>(call.argument(1).data);
  int32_t* rank = static_cast<int32_t*>(call.result().data);
  const int64_t count = call.argument(0).dims[0];
  int32_t keys = 0;
  for (int64_t i = 0; i < count; ++i) {
    if (key[i] < 0) return call.Error("a key is negative", XLA_FFI_Error_Code_INVALID_ARGUMENT);
    if (key[i] >= keys) keys = key[i] + 1;
  }
  int32_t* seen = static_cast<int32_t*>(calloc(static_cast<size_t>(keys) + 1, sizeof(int32_t)));
  if (!seen) return call.Error("out of memory", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
  for (int64_t i = 0; i < count; ++i) {
    rank[i] = seen[key[i]];
    seen[key[i]] += counts[i];
  }
  free(seen);
  return nullptr;
}

// XLA asks for a handler's version before it runs it. What is used here is laid out alike in all versions of jaxlib that
// setup.py allows, 0.3 and 0.4 of this interface, so the answer is the version of the library that asks.
bool AnswersVersion(XLA_FFI_CallFrame* frame) {
  auto* extension = frame->extension_start;  // its type has another name in each version
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return false;
  XLA_FFI_Metadata* metadata = reinterpret_cast<XLA_FFI_Metadata_Extension*>(extension)->metadata;
  metadata->api_version.major_version = frame->api->api_version.major_version;
  metadata->api_version.minor_version = frame->api->api_version.minor_version;
  return true;
}

}  // namespace
}  // namespace moe_jax

#define MOE_JAX_HANDLER(name, expression)                                                              \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame* frame) { \
    if (moe_jax::AnswersVersion(frame)) return nullptr;                                              \
    const moe_jax::Call call(frame);                                                                  \
    return expression;                                                                                \
  }

MOE_JAX_HANDLER(moe_jax_product, moe_jax::Product(call, false))
MOE_JAX_HANDLER(moe_jax_product_transposed, moe_jax::Product(call, true))
MOE_JAX_HANDLER(moe_jax_product_sum, moe_jax::ProductSum(call, false))
MOE_JAX_HANDLER(moe_jax_product_sum_transposed, moe_jax::ProductSum(call, true))
MOE_JAX_HANDLER(moe_jax_outer, moe_jax::Outer(call))
MOE_JAX_HANDLER(moe_jax_sort, moe_jax::Sort(call))
MOE_JAX_HANDLER(moe_jax_rank, moe_jax::Rank(call))
