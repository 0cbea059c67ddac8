/* Times a compiled tree ensemble (the kernel that tl2cgen generates) as qbtc's own loop times a
   signal model: blocks of calls, no Python inside, each call waiting for the result of the one
   before (0 * result is added to its first feature), as one market event waits for the last. */
#include <string.h>
#include <time.h>

enum { FEATURES = 26, CLASSES = 3 };

union entry { /* of the generated header.h */
  int missing;
  double fvalue;
  int qvalue;
};
typedef void (*predict_t)(union entry *, int, double *);

static double now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return 1e9 * (double)t.tv_sec + (double)t.tv_nsec;
}

/* One row; `out` (3) receives the probabilities. */
void predict_row(void *predict, const double *row, double *out) {
  union entry x[FEATURES];
  memcpy(x, row, sizeof x);
  memset(out, 0, CLASSES * sizeof *out);
  ((predict_t)predict)(x, 0, out);
}

/* rows: (n_rows, 26); ns: (blocks), ns per call of each block of `calls`. */
void time_blocks(void *predict, const double *rows, long n_rows, long blocks, long calls,
                 double *ns) {
  union entry x[FEATURES];
  double out[CLASSES], carry = 0.0;
  long i = 0;
  for (long block = 0; block < blocks; block++) {
    double start = now_ns();
    for (long call = 0; call < calls; call++) {
      memcpy(x, rows + FEATURES * i, sizeof x);
      x[0].fvalue += 0.0 * carry;
      memset(out, 0, sizeof out);
      ((predict_t)predict)(x, 0, out);
      carry = out[0];
      if (++i == n_rows) i = 0;
    }
    ns[block] = (now_ns() - start) / (double)calls;
  }
}
