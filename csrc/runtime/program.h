/* Programs: traced score_mod, mask_mod and epilogue functions as canonical SSA text
 * (docs/formats.md, "Program"), and their lowering to C for the holes of a kernel. Libc only;
 * immutable after parsing. */
#ifndef KG_RUNTIME_PROGRAM_H
#define KG_RUNTIME_PROGRAM_H

#include "base/buf.h"
#include "runtime/types.h"

typedef struct kg_program kg_program;
struct kg_op;

/* Checks grammar, types and limits; the error names line and what was expected. */
int kg_program_parse(const char *text, size_t n, kg_program **out, kg_error *err);
void kg_program_free(kg_program *p);
const char *kg_program_text(const kg_program *p); /* canonical */
const char *
kg_program_hash(const kg_program *p); /* 32 hex digits of XXH3-128 of the canonical text */
bool kg_program_has(const kg_program *p, const char *hole); /* SCORE, MASK, EPILOGUE */
/* Whether the Op has a hole for each of its sections; the error names the one that has none. */
int kg_program_fits(const kg_program *p, const struct kg_op *op, kg_error *err);
size_t kg_program_captured(const kg_program *p, int32_t *dtypes,
                           int32_t *ranks); /* count; arrays may be NULL */
size_t kg_program_scalars(const kg_program *p);

/* Checks a call's captured tensors and scalars against the Program. */
int kg_program_check(const kg_program *p, const kg_call *call, kg_error *err);

/* Appends C (target KG_CPU) or CUDA C++ (KG_CUDA; it compiles without headers) that defines, also
 * when p is NULL (plain): struct kg_programs                the captured pointers, strides, sizes
 * and the scalars KG_PROGRAMS                       the parameter type: `const struct kg_programs
 * *` on the CPU, `const struct kg_programs` by value on CUDA KG_HAS_SCORE, KG_HAS_MASK         0 or
 * 1 struct kg_score_row, kg_score_row(p, b, h, q)    what does not depend on kv or score, computed
 * once a row float kg_score(p, row, score, b, h, q, kv)       fp32; `score` is the scaled product
 *   struct kg_mask_row, kg_mask_row(p, b, h, q); int kg_mask(p, row, b, h, q, kv)      0 or 1
 *   int kg_mask_range(p, b, h, q0, q1, k0, k1)       (kg_mask_range_within: see
 * docs/formats.md) over [q0,q1) x [k0,k1): 0 none, 1 all, 2
 * unknown The scalar functions are branch-free, so that a compiler vectorises a loop over kv (or
 * over q, rows included) that calls them; what they read of memory is int, which a float row that
 * the loop writes cannot alias. On the CPU a row struct has a pointer in it exactly when a
 * look-up's index differs within a row. Any b, h, q, kv of int32 is safe. kg_mask_range is never
 * wrong, exact for comparisons of sums of indices, and sees through look-ups of at most 512
 * elements. On the CPU, tanh, exp and their kin are kgen's own branch-free float versions (at most
 * 4 ulp); on CUDA the device's, with KG_ROUGH 1 or 2 the fast ones for some. On CUDA also
 * KG_SCORE_LINE with kg_score_line, KG_SCORE_UNIT, KG_MASK_OF_B and KG_MASK_OF_H (docs/formats.md).
 */
int kg_program_lower(const kg_program *p, int target, kg_buf *out, kg_error *err);
/* The same for the hole EPILOGUE: struct kg_programs, KG_PROGRAMS, KG_HAS_EPILOGUE, struct
 * kg_epilogue_row, kg_epilogue_row(p, b, m) with what does not depend on n or acc, and float
 * kg_epilogue(p, row, acc, b, m, n), which is acc when p is NULL. */
int kg_program_lower_epilogue(const kg_program *p, int target, kg_buf *out, kg_error *err);

/* Whether the score or the mask takes a tanh. */
bool kg_program_uses_tanh(const kg_program *p);

/* Bytes of `struct kg_programs`, and its content for one call (pointers from the call's captured
 * tensors). */
size_t kg_program_args_size(const kg_program *p);
int kg_program_args(const kg_program *p, const kg_call *call, void *bytes, size_t n, kg_error *err);

/* Whether the mask reads the batch entry ('b') or the head ('h'); and by what it divides both q and
 * kv, 0 when there is no such number: the width of an image whose pixels are queries and keys. */
bool kg_program_mask_reads(const kg_program *p, char index);
int64_t kg_program_mask_width(const kg_program *p, const kg_call *call);

/* Evaluates on the host in double precision: the judge's and the tests' own reference. */
int kg_program_score(const kg_program *p, const kg_call *call, double score, int64_t b, int64_t h,
                     int64_t q, int64_t kv, double *out, kg_error *err);
int kg_program_epilogue(const kg_program *p, const kg_call *call, double acc, int64_t b, int64_t m,
                        int64_t n, double *out, kg_error *err);
int kg_program_mask(const kg_program *p, const kg_call *call, int64_t b, int64_t h, int64_t q,
                    int64_t kv, bool *out, kg_error *err);

#endif
