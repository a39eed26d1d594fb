/* A CUDA driver without a GPU, for tests: libcuda.so.1's interface as cuda.h declares it, over malloc and memcpy.

   What it shows is that a caller passes the right arguments: wrong sizes, addresses or handles are refused or crash.
   Streams run at once. While one captures, copies are noted instead and run at each launch of the graph. Statuses are
   cuda.h's. FAKE_CUDA_BYTES is the device's memory; FAKE_CUDA_VERSION the driver's CUDA version; FAKE_CUDA_DEVICES how
   many GPUs it has. fakeCounts tells what hasn't been given back. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define OK 0
#define INVALID_VALUE 1
#define OUT_OF_MEMORY 2
#define NO_DEVICE 100
#define INVALID_CONTEXT 201
#define INVALID_HANDLE 400
#define NOT_FOUND 500

typedef struct { void *to; const void *from; size_t bytes; } Copy;
typedef struct { Copy copies[16]; int count; } Graph;
typedef struct { int magic; int capturing; Graph graph; } Stream;
typedef struct { int magic; int recorded; } Event;
typedef struct { void *address; size_t bytes; int pinned; } Block;

enum { STREAM = 0x57, EVENT = 0xE7 };

static Block blocks[64];
static int started, retained, depth, streams, events, graphs, executables;
static char context;

static long setting(const char *name, long otherwise) {
  const char *text = getenv(name);
  return text ? atol(text) : otherwise;
}

static Block *found(const void *address, int pinned) {
  for (int i = 0; i < 64; i++)
    if (address && blocks[i].address == address && blocks[i].pinned == pinned) return &blocks[i];
  return 0;
}

static size_t used(int pinned) {
  size_t sum = 0;
  for (int i = 0; i < 64; i++)
    if (blocks[i].address && blocks[i].pinned == pinned) sum += blocks[i].bytes;
  return sum;
}

static int current(void) { return depth > 0; }

static int take(void **address, size_t bytes, int pinned) {
  if (!current()) return INVALID_CONTEXT;
  if (!bytes) return INVALID_VALUE;
  if (!pinned && used(0) + bytes > (size_t)setting("FAKE_CUDA_BYTES", 1 << 20)) return OUT_OF_MEMORY;
  for (int i = 0; i < 64; i++)
    if (!blocks[i].address) {
      *address = malloc(bytes);
      memset(*address, 0xA5, bytes);
      blocks[i] = (Block){*address, bytes, pinned};
      return OK;
    }
  return OUT_OF_MEMORY;
}

static int give_back(void *address, int pinned) {
  Block *block = found(address, pinned);
  if (!current()) return INVALID_CONTEXT;
  if (!block) return INVALID_VALUE;
  free(address);
  block->address = 0;
  return OK;
}

static int copy(void *to, int to_pinned, const void *from, int from_pinned, size_t bytes, Stream *stream) {
  Block *target = found(to, to_pinned), *source = found(from, from_pinned);
  if (!current()) return INVALID_CONTEXT;
  if (!stream || stream->magic != STREAM) return INVALID_HANDLE;
  if (!target || !source || bytes > target->bytes || bytes > source->bytes) return INVALID_VALUE;
  if (!stream->capturing) memcpy(to, from, bytes);
  else if (stream->graph.count < 16) stream->graph.copies[stream->graph.count++] = (Copy){to, from, bytes};
  return OK;
}

int cuInit(unsigned flags) {
  if (flags) return INVALID_VALUE;
  if (!setting("FAKE_CUDA_DEVICES", 1)) return NO_DEVICE;
  started = 1;
  return OK;
}
int cuDriverGetVersion(int *version) { *version = (int)setting("FAKE_CUDA_VERSION", 13000); return OK; }
int cuDeviceGetCount(int *count) { *count = (int)setting("FAKE_CUDA_DEVICES", 1); return OK; }
int cuDeviceGet(int *device, int ordinal) {
  if (!started || ordinal) return INVALID_VALUE;
  *device = 0;
  return OK;
}
int cuDeviceGetName(char *name, int length, int device) {
  if (device || length < 16) return INVALID_VALUE;
  strcpy(name, "Fake GPU");
  return OK;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
  if (device || (attribute != 75 && attribute != 76)) return INVALID_VALUE;
  *value = attribute == 75 ? 8 : 0;
  return OK;
}
int cuDevicePrimaryCtxRetain(void **made, int device) {
  if (!started || device) return INVALID_VALUE;
  retained++;
  *made = &context;
  return OK;
}
int cuDevicePrimaryCtxRelease_v2(int device) { return device || retained-- < 1 ? INVALID_CONTEXT : OK; }
int cuCtxPushCurrent_v2(void *pushed) {
  if (pushed != &context || !retained) return INVALID_CONTEXT;
  depth++;
  return OK;
}
int cuCtxPopCurrent_v2(void **popped) {
  if (!current()) return INVALID_CONTEXT;
  depth--;
  if (popped) *popped = &context;
  return OK;
}

int cuMemAlloc_v2(uintptr_t *address, size_t bytes) { return take((void **)address, bytes, 0); }
int cuMemFree_v2(uintptr_t address) { return give_back((void *)address, 0); }
int cuMemHostAlloc(void **address, size_t bytes, unsigned flags) { return flags ? INVALID_VALUE : take(address, bytes, 1); }
int cuMemFreeHost(void *address) { return give_back(address, 1); }
int cuMemcpyHtoDAsync_v2(uintptr_t to, const void *from, size_t bytes, Stream *stream) {
  return copy((void *)to, 0, from, 1, bytes, stream);
}
int cuMemcpyDtoHAsync_v2(void *to, uintptr_t from, size_t bytes, Stream *stream) {
  return copy(to, 1, (void *)from, 0, bytes, stream);
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, Stream *stream) {
  return copy((void *)to, 0, (void *)from, 0, bytes, stream);
}

int cuStreamCreate(Stream **made, unsigned flags) {
  if (!current()) return INVALID_CONTEXT;
  if (flags != 1) return INVALID_VALUE;
  *made = calloc(1, sizeof(Stream));
  (*made)->magic = STREAM;
  streams++;
  return OK;
}
int cuStreamSynchronize(Stream *stream) { return stream && stream->magic == STREAM ? OK : INVALID_HANDLE; }
int cuStreamDestroy_v2(Stream *stream) {
  if (!current() || !stream || stream->magic != STREAM) return INVALID_HANDLE;
  free(stream);
  streams--;
  return OK;
}
int cuEventCreate(Event **made, unsigned flags) {
  if (!current() || flags) return INVALID_VALUE;
  *made = calloc(1, sizeof(Event));
  (*made)->magic = EVENT;
  events++;
  return OK;
}
int cuEventRecord(Event *event, Stream *stream) {
  if (event->magic != EVENT || stream->magic != STREAM) return INVALID_HANDLE;
  static int clock;
  event->recorded = ++clock;
  return OK;
}
int cuEventSynchronize(Event *event) { return event->magic == EVENT && event->recorded ? OK : INVALID_HANDLE; }
int cuEventElapsedTime_v2(float *milliseconds, Event *start, Event *end) {
  if (start->magic != EVENT || end->magic != EVENT || !start->recorded || !end->recorded) return INVALID_HANDLE;
  *milliseconds = 0.5f * (float)(end->recorded - start->recorded);
  return OK;
}
int cuEventElapsedTime(float *milliseconds, Event *start, Event *end) {
  return cuEventElapsedTime_v2(milliseconds, start, end);
}
int cuEventDestroy_v2(Event *event) {
  if (!current() || event->magic != EVENT) return INVALID_HANDLE;
  free(event);
  events--;
  return OK;
}

int cuStreamBeginCapture_v2(Stream *stream, int mode) {
  if (stream->magic != STREAM || mode != 1 || stream->capturing) return INVALID_VALUE;
  stream->capturing = 1;
  stream->graph.count = 0;
  return OK;
}
int cuStreamEndCapture(Stream *stream, Graph **made) {
  if (stream->magic != STREAM || !stream->capturing) return INVALID_VALUE;
  stream->capturing = 0;
  *made = malloc(sizeof(Graph));
  **made = stream->graph;
  graphs++;
  return OK;
}
int cuGraphInstantiateWithFlags(Graph **made, Graph *graph, unsigned long long flags) {
  if (flags) return INVALID_VALUE;
  *made = malloc(sizeof(Graph));
  **made = *graph;
  executables++;
  return OK;
}
int cuGraphLaunch(Graph *executable, Stream *stream) {
  if (stream->magic != STREAM || stream->capturing) return INVALID_HANDLE;
  for (int i = 0; i < executable->count; i++)
    memcpy(executable->copies[i].to, executable->copies[i].from, executable->copies[i].bytes);
  return OK;
}
int cuGraphDestroy(Graph *graph) { free(graph); graphs--; return OK; }
int cuGraphExecDestroy(Graph *executable) { free(executable); executables--; return OK; }

int cuGetErrorName(int status, const char **text) {
  *text = status == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : status == NO_DEVICE ? "CUDA_ERROR_NO_DEVICE"
        : status == INVALID_VALUE ? "CUDA_ERROR_INVALID_VALUE" : 0;
  return *text ? OK : INVALID_VALUE;
}
int cuGetErrorString(int status, const char **text) {
  *text = status == OUT_OF_MEMORY ? "out of memory" : status == NO_DEVICE ? "no CUDA-capable device is detected" : "?";
  return OK;
}

/* As NVIDIA's: a function's newest version that the caller's CUDA version knows. */
#include <dlfcn.h>
#include <stdio.h>
int cuGetProcAddress_v2(const char *name, void **function, int version, uint64_t flags, int *result) {
  char newer[128];
  (void)flags;
  snprintf(newer, sizeof newer, "%s_v2", name);
  *function = version < 3020 ? 0 : dlsym(RTLD_DEFAULT, newer);
  if (!*function) {
    void *self = dlopen("libcuda.so.1", RTLD_LAZY | RTLD_NOLOAD);
    *function = self ? dlsym(self, newer) : 0;
    if (self && !*function) *function = dlsym(self, name);
  }
  if (result) *result = *function ? 0 : 1;
  return *function ? OK : NOT_FOUND;
}

/* Contexts retained, pushed; bytes on the device and pinned; streams, events, graphs and executable graphs. */
void fakeCounts(long counts[8]) {
  long now[] = {retained, depth, (long)used(0), (long)used(1), streams, events, graphs, executables};
  memcpy(counts, now, sizeof now);
}
