/* Keys: what decides which Kernel serves a call. A call gives an exact key; a pin holds an exact or
 * a dynamic one; matching is here, for the look-up and for tests. */
#ifndef KG_RUNTIME_SIGNATURE_H
#define KG_RUNTIME_SIGNATURE_H

#include "base/hash.h"
#include "runtime/op.h"

enum {
    KG_LAYOUT_ABSENT = '-',
    KG_LAYOUT_CONTIGUOUS = 'c',
    KG_LAYOUT_INNER = 'i',
    KG_LAYOUT_STRIDED = 's'
};
enum { KG_PROGRAM_NONE = 0, KG_PROGRAM_HASH = 1, KG_PROGRAM_ANY = 2 };

typedef struct kg_key {
    uint8_t device, precision, program; /* program: KG_PROGRAM_* */
    uint8_t
        skip; /* bit i: optional output i is left out: not wanted by a call, not judged of a pin */
    uint8_t ntensors; /* tensor args (Tensor and Tensor?), in the contract's order */
    uint8_t dtype[KG_MAX_ARGS];
    char layout[KG_MAX_ARGS];
    kg_hash128 program_hash;
    uint8_t nattrs;                 /* attributes with key, in the contract's order */
    uint8_t attr_type[KG_MAX_ARGS]; /* kg_arg_type of each */
    kg_value attr[KG_MAX_ARGS];
    uint8_t ndims;                              /* dims with key, in the contract's order */
    int64_t min[KG_MAX_DIMS], max[KG_MAX_DIMS]; /* equal in an exact key */
} kg_key;

int kg_key_of_call(const kg_op *op, const kg_call *call, const kg_dims *dims, kg_key *out,
                   kg_error *err);
bool kg_key_exact(const kg_key *k);
bool kg_key_equal(const kg_key *a, const kg_key *b);
/* An absent Tensor? has layout '-' and dtype 0. A call that allows tf32 or bf16 is served by more
 * accurate pins, too; "*" serves calls that have a Program, and no plain ones; a pin serves calls
 * that want fewer outputs than it was judged on, and none that want more. */
/* Whether a pin with key `pin` may serve a call with exact key `call`. why (may be NULL, 256 bytes)
 * gets the first field that differs: "dims.N is 8192, the pin has 1..4096". */
bool kg_key_match(const kg_op *op, const kg_key *pin, const kg_key *call, char *why);
/* Sum over open dims of |log2(size / middle of the range)|: the nearest of several dynamic pins
 * serves. */
double kg_key_distance(const kg_key *pin, const kg_key *call);

/* The inverse of kg_hash128_hex; false when text is not 32 lower-case hex digits. */
bool kg_hash128_parse(const char *text, kg_hash128 *out);

int kg_key_write(const kg_key *k, kg_buf *out);
int kg_key_read(kg_reader *in, kg_key *out, kg_error *err);

#endif
