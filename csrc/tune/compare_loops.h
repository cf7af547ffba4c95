/* The inner loops of compare.c, once for each instruction set: KG_TARGET is an attribute,
 * KG_NAME(x) a name. Included by compare_loops.c alone; it has no guard because it is included
 * several times.
 *
 * A block is gone through in vectors of 8; when an element of it is not finite on either side, or
 * still holds the poison, its `odd` is not zero and the caller goes through it again element by
 * element. */

typedef struct KG_NAME(sums) {
    kg_v8d d2, r2, worst, scale;
    kg_v8l odd, far;
} KG_NAME(sums);

#define KG_ACCUMULATE(x, r)                                                                        \
    do {                                                                                           \
        kg_v8d d_ = (x) - (r);                                                                     \
        kg_v8d ad_ = (kg_v8d)((kg_v8l)d_ & ABS_MASK), ar_ = (kg_v8d)(ABS_MASK & (kg_v8l)(r));      \
        s.odd |= ~(d_ - d_ == 0.0);                                                                \
        s.d2 += d_ * d_;                                                                           \
        s.r2 += (r) * (r);                                                                         \
        kg_v8l more_ = ad_ > s.worst;                                                              \
        s.worst = (kg_v8d)(((kg_v8l)s.worst & ~more_) | ((kg_v8l)ad_ & more_));                    \
        more_ = ar_ > s.scale;                                                                     \
        s.scale = (kg_v8d)(((kg_v8l)s.scale & ~more_) | ((kg_v8l)ar_ & more_));                    \
        s.far -= ad_ > close + close * ar_;                                                        \
    } while (0)

#define KG_FINISH                                                                                  \
    for (int k = 0; k < 8; k++) {                                                                  \
        to->d2 += s.d2[k];                                                                         \
        to->r2 += s.r2[k];                                                                         \
        to->worst = s.worst[k] > to->worst ? s.worst[k] : to->worst;                               \
        to->scale = s.scale[k] > to->scale ? s.scale[k] : to->scale;                               \
        to->far += (size_t)s.far[k];                                                               \
        to->odd |= s.odd[k] != 0;                                                                  \
    }

/* n is a multiple of 8. */
KG_TARGET static void KG_NAME(block_f32)(const void *out, const double *oracle, size_t n,
                                         double close, kg_block *to) {
    KG_NAME(sums) s = {0};
    for (size_t i = 0; i < n; i += 8) {
        kg_v8f f;
        kg_v8d r;
        memcpy(&f, (const float *)out + i, sizeof f);
        memcpy(&r, oracle + i, sizeof r);
        kg_v8d x = __builtin_convertvector(f, kg_v8d);
        KG_ACCUMULATE(x, r);
    }
    KG_FINISH
}

KG_TARGET static void KG_NAME(block_f64)(const void *out, const double *oracle, size_t n,
                                         double close, kg_block *to) {
    KG_NAME(sums) s = {0};
    for (size_t i = 0; i < n; i += 8) {
        kg_v8d x, r;
        memcpy(&x, (const double *)out + i, sizeof x);
        memcpy(&r, oracle + i, sizeof r);
        KG_ACCUMULATE(x, r);
    }
    KG_FINISH
}

KG_TARGET static void KG_NAME(block_bf16)(const void *out, const double *oracle, size_t n,
                                          double close, kg_block *to) {
    KG_NAME(sums) s = {0};
    for (size_t i = 0; i < n; i += 8) {
        kg_v8h h;
        kg_v8d r;
        memcpy(&h, (const uint16_t *)out + i, sizeof h);
        memcpy(&r, oracle + i, sizeof r);
        kg_v8u bits = __builtin_convertvector(h, kg_v8u) << 16;
        kg_v8d x = __builtin_convertvector((kg_v8f)bits, kg_v8d);
        KG_ACCUMULATE(x, r);
    }
    KG_FINISH
}

/* The exponent is moved by a multiplication, which is right for subnormal numbers too; the highest
 * exponent stands for Inf and NaN and gets all its bits. */
KG_TARGET static void KG_NAME(block_f16)(const void *out, const double *oracle, size_t n,
                                         double close, kg_block *to) {
    KG_NAME(sums) s = {0};
    for (size_t i = 0; i < n; i += 8) {
        kg_v8h h;
        kg_v8d r;
        memcpy(&h, (const uint16_t *)out + i, sizeof h);
        memcpy(&r, oracle + i, sizeof r);
        kg_v8u wide = __builtin_convertvector(h, kg_v8u);
        kg_v8u sign = (wide & 0x8000u) << 16, rest = (wide & 0x7fffu) << 13;
        kg_v8f f = (kg_v8f)rest * 0x1p112f;
        kg_v8u special = (kg_v8u)(rest >= 0x7c00u << 13);
        kg_v8u bits = (kg_v8u)f | sign | (special & 0x7f800000u);
        kg_v8d x = __builtin_convertvector((kg_v8f)bits, kg_v8d);
        KG_ACCUMULATE(x, r);
    }
    KG_FINISH
}

static const kg_loops KG_NAME(loops) = {.f32 = KG_NAME(block_f32),
                                        .f64 = KG_NAME(block_f64),
                                        .f16 = KG_NAME(block_f16),
                                        .bf16 = KG_NAME(block_bf16)};

#undef KG_ACCUMULATE
#undef KG_FINISH
