/* What a wrong element is: the definitions that the comparison on a CPU (compare.c) and the one on
 * a GPU (checks.cu) share, so that both give the same numbers. Valid C17 and CUDA C++; includes
 * nothing (compare.h, through which the CPU has it, does), because NVRTC compiles it without a
 * header. Refuses to know of tensors, chunks or threads: one element at a time. */
#ifndef KG_TUNE_CHECK_CORE_H
#define KG_TUNE_CHECK_CORE_H

#ifdef __CUDACC__
#define KG_CORE static __device__ __forceinline__
#else
#define KG_CORE static inline
#endif

typedef unsigned long long kg_word64;
typedef unsigned int kg_word32;

/* What elements add up to. */
typedef struct kg_sums {
    double d2, r2;       /* sums of squares: of the difference, of the oracle */
    double worst, scale; /* largest magnitudes: of the difference, of the oracle */
    kg_word64 far;       /* outside of |d| <= close + close * |oracle| */
    kg_word64 unwritten; /* still hold the poison */
    kg_word64 nonfinite; /* not finite where the oracle is */
    kg_word64 misplaced; /* the oracle is not finite, and the output is not the same */
    kg_word64 unequal;   /* integers that differ */
} kg_sums;

/* What a dtype gives: its largest finite value, and KernelBench's absolute and relative tolerance.
 */
typedef struct kg_range {
    double largest, close;
} kg_range;

typedef enum kg_fit { KG_FIT_FINITE, KG_FIT_SAME, KG_FIT_NONFINITE, KG_FIT_MISPLACED } kg_fit;

KG_CORE double kg_bits_double(kg_word64 bits) {
#ifdef __CUDACC__
    return __longlong_as_double((long long)bits);
#else
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
#endif
}

KG_CORE float kg_bits_float(kg_word32 bits) {
#ifdef __CUDACC__
    return __uint_as_float(bits);
#else
    float f;
    memcpy(&f, &bits, sizeof f);
    return f;
#endif
}

/* Values of floats by their bits. The exponent of a half is moved by a multiplication, which is
 * right for subnormal numbers too; the highest exponent stands for Inf and NaN and gets all its
 * bits. */
KG_CORE double kg_value_f16(kg_word32 h) {
    float f = kg_bits_float((h & 0x7fffu) << 13) * 0x1p112f;
    kg_word32 bits = 0;
    if ((h & 0x7c00u) == 0x7c00u) {
        bits = 0x7f800000u | (h & 0x3ffu) << 13;
        f = kg_bits_float(bits);
    }
    return h & 0x8000u ? -(double)f : (double)f;
}

KG_CORE double kg_value_bf16(kg_word32 h) {
    return (double)kg_bits_float(h << 16);
}

KG_CORE double kg_value_f32(kg_word32 bits) {
    return (double)kg_bits_float(bits);
}

/* A finite oracle beyond the dtype's range is what the dtype calls infinite; close to its end both
 * will do. */
KG_CORE kg_fit kg_fit_of(double x, double r, double largest) {
    if (r != r)
        return x != x ? KG_FIT_SAME : KG_FIT_MISPLACED;
    if (fabs(r) > largest * (1 - 0x1p-9)) {
        double along = r > 0 ? x : -x;
        int infinite = r - r != 0;
        if (x != x || along < -largest)
            return KG_FIT_NONFINITE;
        if (along >= largest * (1 - 0x1p-8) && (along > largest || !infinite))
            return KG_FIT_SAME;
        if (infinite)
            return KG_FIT_MISPLACED;
    }
    return x - x == 0 ? KG_FIT_FINITE : KG_FIT_NONFINITE;
}

/* One floating element against its oracle. poisoned: it has the poison's bits. */
KG_CORE void kg_add_float(kg_sums *s, double x, double r, int poisoned, kg_range range) {
    double d = fabs(x - r), ar = fabs(r);
    if (!(d - d == 0) || ar > range.largest) {
        kg_fit fit = kg_fit_of(x, r, range.largest);
        if (poisoned) {
            s->unwritten++;
            return;
        }
        s->nonfinite += fit == KG_FIT_NONFINITE;
        s->misplaced += fit == KG_FIT_MISPLACED;
        if (fit != KG_FIT_FINITE) {
            s->far += fit != KG_FIT_SAME;
            return;
        }
    }
    s->d2 += d * d;
    s->r2 += r * r;
    s->worst = d > s->worst ? d : s->worst;
    s->scale = ar > s->scale ? ar : s->scale;
    s->far += d > range.close + range.close * ar;
}

/* An integer oracle that stands for any value: where rounding decides what is right (the place of
 * the largest of two that are as good as equal), nothing is held against a Candidate. */
KG_CORE int kg_any_integer(long long r) {
    return r == -0x7fffffffffffffffll - 1;
}

/* One integer: its error as a number, but any difference is wrong. */
KG_CORE void kg_add_integer(kg_sums *s, long long x, long long r, int poisoned) {
    if (kg_any_integer(r)) /* a narrow one may be the poison by chance */
        return;
    double ar = fabs((double)r), d = fabs((double)x - (double)r);
    s->scale = ar > s->scale ? ar : s->scale;
    s->r2 += ar * ar;
    if (x == r)
        return;
    s->unwritten += poisoned != 0;
    s->unequal++;
    s->d2 += d * d;
    s->worst = d > s->worst ? d : s->worst;
}

KG_CORE void kg_add_sums(kg_sums *to, const kg_sums *s) {
    to->d2 += s->d2;
    to->r2 += s->r2;
    to->worst = s->worst > to->worst ? s->worst : to->worst;
    to->scale = s->scale > to->scale ? s->scale : to->scale;
    to->far += s->far;
    to->unwritten += s->unwritten;
    to->nonfinite += s->nonfinite;
    to->misplaced += s->misplaced;
    to->unequal += s->unequal;
}

/* A hash that does not depend on the order in which the words come: each word of 16 bytes is mixed
 * with its place and a secret, and the mixtures are added. For one word the mixture is one to one,
 * so a single changed word always shows. */
typedef struct kg_hash_sums {
    kg_word64 a, b;
} kg_hash_sums;

KG_CORE void kg_hash_word(kg_hash_sums *s, kg_word64 lo, kg_word64 hi, kg_word64 place,
                          kg_word64 secret) {
    kg_word64 t = (lo ^ secret) + place * 0x9e3779b97f4a7c15u;
    kg_word64 u = (hi ^ (secret << 32 | secret >> 32)) + place * 0xd6e8feb86659fd93u;
    t = (t ^ t >> 32) * 0xff51afd7ed558ccdu;
    u = (u ^ u >> 29) * 0xc4ceb9fe1a85ec53u;
    u ^= t >> 33;
    t ^= u >> 31;
    s->a += (t ^ t >> 29) * 0xbf58476d1ce4e5b9u;
    s->b += (u ^ u >> 32) * 0x94d049bb133111ebu;
}

#endif
