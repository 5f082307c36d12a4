"""A library with one operator of another domain, ``my.layers::Halve``, compiled from C where there is a compiler."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
DOMAIN, OPERATOR = "my.layers", "Halve"

# ONNX Runtime's C interface is a table of functions that only grows; these are their places in it, so that no header is
# needed. Wheels have none.
SOURCE = """
#include <stddef.h>
#include <stdint.h>

enum {DOMAIN_NEW = 26, DOMAIN_ADD = 27, OPTIONS_ADD = 28, DATA = 51, RANK = 61, SIZES = 62, COUNT = 64, SHAPE = 65};
enum {INPUT = 90, OUTPUT = 91, RELEASE_SHAPE = 99, FLOAT = 1, OLD_ENOUGH = 14};

typedef const void **Table;
typedef struct {Table (*table)(uint32_t); const char *(*version)(void);} Base;
typedef struct Operator {
  uint32_t version;
  void *(*create)(const struct Operator *, Table, const void *);
  const char *(*name)(const struct Operator *);
  const char *(*provider)(const struct Operator *);
  int (*input_type)(const struct Operator *, size_t);
  size_t (*inputs)(const struct Operator *);
  int (*output_type)(const struct Operator *, size_t);
  size_t (*outputs)(const struct Operator *);
  void (*compute)(void *, void *);
  void (*destroy)(void *);
  int (*traits[7])(const struct Operator *, size_t);
} Operator;

static Table api;
#define CALL(place, ...) ((void *(*)())api[place])(__VA_ARGS__)

static void *create(const Operator *op, Table table, const void *info) {
  (void)op; (void)info;
  api = table;
  return &api;
}
static const char *name(const Operator *op) { (void)op; return "Halve"; }
static const char *provider(const Operator *op) { (void)op; return NULL; }
static int type(const Operator *op, size_t index) { (void)op; (void)index; return FLOAT; }
static int required(const Operator *op, size_t index) { (void)op; (void)index; return 0; }
static size_t one(const Operator *op) { (void)op; return 1; }
static void destroy(void *kernel) { (void)kernel; }

static void compute(void *kernel, void *context) {
  void *x, *y, *shape;
  float *from, *to;
  size_t rank, count;
  int64_t sizes[8];
  (void)kernel;
  CALL(INPUT, context, (size_t)0, &x);
  CALL(SHAPE, x, &shape);
  CALL(RANK, shape, &rank);
  CALL(SIZES, shape, sizes, rank);
  CALL(COUNT, shape, &count);
  ((void (*)(void *))api[RELEASE_SHAPE])(shape);
  CALL(OUTPUT, context, (size_t)0, sizes, rank, &y);
  CALL(DATA, x, &from);
  CALL(DATA, y, &to);
  for (size_t i = 0; i < count; i++) to[i] = from[i] / 2;
}

static Operator halve = {OLD_ENOUGH, create, name, provider, type, one, type, one, compute, destroy,
  {required, required, required, type, type, type, type}};

void *RegisterCustomOps(void *options, const Base *base) {
  void *domain, *status;
  api = base->table(OLD_ENOUGH);
  if ((status = CALL(DOMAIN_NEW, "my.layers", &domain))) return status;
  if ((status = CALL(DOMAIN_ADD, domain, &halve))) return status;
  return CALL(OPTIONS_ADD, options, domain);
}
"""


def compiled(folder: Path) -> Path:
    """Compile the library into a folder, and return it."""
    source, library = folder / "halve.c", folder / "libhalve.so"
    source.write_text(SOURCE, "utf8")
    assert COMPILER is not None
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source], check=True, capture_output=True)
    return library
