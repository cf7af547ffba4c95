/* Lengths by three tables (one-byte opcodes, 0F, and what VEX and EVEX take out of the latter) and
 * the ModRM byte; then a list of what is refused. Reads past nothing; allocates nothing. */
#include "runtime/x86_decode.h"

#include <string.h>

enum { MAX_LENGTH = 15 };

/* What follows an opcode. */
enum {
    N = 0,      /* nothing */
    M = 1,      /* ModRM, perhaps SIB and displacement */
    B = 2,      /* an immediate of 1 byte */
    W = 4,      /* of 2 */
    Z = 8,      /* of 4, or of 2 after 66 */
    V = 16,     /* of 8 after REX.W, else as Z */
    J = 32,     /* the immediate is a distance */
    X = 64,     /* no instruction, or one that is handled apart */
    MB = M | B, /* and so on */
    MZ = M | Z,
    JB = J | B,
    JZ = J | Z
};

/* clang-format off */
static const unsigned char one_byte[256] = {
    M,M,M,M,B,Z,X,X, M,M,M,M,B,Z,X,X,  M,M,M,M,B,Z,X,X, M,M,M,M,B,Z,X,X,
    M,M,M,M,B,Z,X,X, M,M,M,M,B,Z,X,X,  M,M,M,M,B,Z,X,X, M,M,M,M,B,Z,X,X,
    X,X,X,X,X,X,X,X, X,X,X,X,X,X,X,X,  N,N,N,N,N,N,N,N, N,N,N,N,N,N,N,N,
    X,X,X,M,X,X,X,X, Z,MZ,B,MB,N,N,N,N,  JB,JB,JB,JB,JB,JB,JB,JB, JB,JB,JB,JB,JB,JB,JB,JB,
    MB,MZ,X,MB,M,M,M,M, M,M,M,M,M,M,M,M,  N,N,N,N,N,N,N,N, N,N,X,N,N,N,N,N,
    X,X,X,X,N,N,N,N, B,Z,N,N,N,N,N,N,  B,B,B,B,B,B,B,B, V,V,V,V,V,V,V,V,
    MB,MB,W,N,X,X,MB,MZ, W|B,N,W,N,N,B,X,N,  M,M,M,M,X,X,X,N, M,M,M,M,M,M,M,M,
    JB,JB,JB,JB,B,B,B,B, JZ,JZ,X,JB,N,N,N,N,  X,N,X,X,N,N,M,M, N,N,N,N,N,N,M,M};

static const unsigned char two_byte[256] = {
    M,M,M,M,X,N,N,N, N,N,X,N,X,M,N,MB,  M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M,
    M,M,M,M,X,X,X,X, M,M,M,M,M,M,M,M,  N,N,N,N,N,N,X,N, X,X,X,X,X,X,X,X,
    M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M,  M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M,
    M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M,  MB,MB,MB,MB,M,M,M,N, M,M,X,X,M,M,M,M,
    JZ,JZ,JZ,JZ,JZ,JZ,JZ,JZ, JZ,JZ,JZ,JZ,JZ,JZ,JZ,JZ,  M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M,
    N,N,N,M,MB,M,X,X, N,N,N,M,MB,M,M,M,  M,M,M,M,M,M,M,M, M,M,MB,M,M,M,M,M,
    M,M,MB,M,MB,MB,MB,M, N,N,N,N,N,N,N,N,  M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M,
    M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M,  M,M,M,M,M,M,M,M, M,M,M,M,M,M,M,M};
/* clang-format on */

enum encoding { LEGACY, VEX, EVEX };

typedef struct insn {
    const unsigned char *code;
    size_t n, at;
    bool p66, repne, rep, wide, segment;
    enum encoding encoding;
    int map; /* 0: one byte, 1: 0F, 2: 0F38, 3: 0F3A; 5 and 6 of EVEX */
    unsigned op;
    bool has_modrm;
    unsigned modrm;
    size_t immediate; /* bytes */
    unsigned shape;
} insn;

/* The next byte; 256 past the end, which no table knows. */
static unsigned take(insn *i) {
    return i->at < i->n ? i->code[i->at++] : (i->at++, 256u);
}

static void read_prefixes(insn *i) {
    for (; i->at < i->n; i->at++)
        switch (i->code[i->at]) {
        case 0x66:
            i->p66 = true;
            break;
        case 0xf2:
            i->repne = true;
            break;
        case 0xf3:
            i->rep = true;
            break;
        case 0x64:
        case 0x65:
            i->segment = true;
            break;
        case 0x26:
        case 0x2e:
        case 0x36:
        case 0x3e:
        case 0x67:
        case 0xf0:
            break;
        default:
            return;
        }
}

/* VEX carries the prefixes 66, F3, F2 as a number. */
static void set_pp(insn *i, unsigned pp) {
    i->p66 = pp == 1;
    i->rep = pp == 2;
    i->repne = pp == 3;
}

static bool read_vex(insn *i, unsigned first) {
    if (i->p66 || i->rep || i->repne)
        return false;
    i->encoding = first == 0x62 ? EVEX : VEX;
    unsigned p0 = take(i), p1 = p0;
    i->map = 1;
    if (first != 0xc5) {
        p1 = take(i);
        i->map = (int)(p0 & (first == 0x62 ? 15 : 31));
        i->wide = p1 >> 7 & 1;
    }
    /* Bit 2 of EVEX's second byte is always set; bit 3 of its first is another, later encoding. */
    if (first == 0x62 && (!(p1 & 4) || take(i) > 255))
        return false;
    set_pp(i, p1 & 3);
    i->op = take(i);
    bool known = (i->map >= 1 && i->map <= 3) || (first == 0x62 && (i->map == 5 || i->map == 6));
    return known && i->op <= 255;
}

/* Opcode and map; false when there are none. */
static bool read_opcode(insn *i) {
    read_prefixes(i);
    unsigned b = take(i);
    if (b == 0xc4 || b == 0xc5 || b == 0x62)
        return read_vex(i, b);
    if (b >= 0x40 && b <= 0x4f) {
        i->wide = b >> 3 & 1;
        b = take(i);
    }
    if (b == 0x0f) {
        i->map = 1;
        b = take(i);
        if (b == 0x38 || b == 0x3a) {
            i->map = b == 0x38 ? 2 : 3;
            b = take(i);
        }
    }
    i->op = b;
    return b <= 255;
}

static unsigned shape_of(const insn *i) {
    if (i->map == 0)
        return one_byte[i->op];
    if (i->map == 3)
        return MB;
    if (i->map != 1)
        return M;
    if (i->encoding == LEGACY)
        return two_byte[i->op];
    bool immediate =
        (i->op >= 0x70 && i->op <= 0x73) || i->op == 0xc2 || (i->op >= 0xc4 && i->op <= 0xc6);
    return i->op == 0x77 && i->encoding == VEX ? N : immediate ? MB : M;
}

static unsigned reg_of(const insn *i) {
    return i->modrm >> 3 & 7;
}

static bool is_memory(const insn *i) {
    return i->has_modrm && i->modrm >> 6 != 3;
}

static void read_modrm(insn *i) {
    unsigned sib = 0;
    i->has_modrm = true;
    i->modrm = take(i);
    unsigned mod = i->modrm >> 6 & 3, rm = i->modrm & 7;
    if (mod == 3)
        return;
    if (rm == 4)
        sib = take(i);
    if (mod == 1)
        i->at += 1;
    else if (mod == 2 || (mod == 0 && (rm == 5 || (rm == 4 && (sib & 7) == 5))))
        i->at += 4;
}

static size_t immediate_of(const insn *i) {
    bool half = i->p66 && !i->wide;
    size_t bytes = (i->shape & B ? 1u : 0u) + (i->shape & W ? 2u : 0u);
    if (i->shape & Z)
        bytes += half ? 2 : 4;
    if (i->shape & V)
        bytes += i->wide ? 8 : half ? 2 : 4;
    /* TEST alone of its group has one. */
    if (i->map == 0 && (i->op == 0xf6 || i->op == 0xf7) && reg_of(i) < 2)
        bytes += i->op == 0xf6 ? 1 : half ? 2 : 4;
    /* An address of 8 bytes. */
    if (i->map == 0 && i->op >= 0xa0 && i->op <= 0xa3)
        bytes = 8;
    return bytes;
}

/* --- what no Candidate may have --- */

static const char SYSTEM[] = "an instruction of the system",
                  SEGMENT[] = "a segment register (thread's or process's own memory)",
                  FLAGS[] = "an instruction that reads or sets the processor's flags as a whole",
                  FLOATS[] = "an instruction that reads or sets the floating-point environment "
                             "(rounding, exceptions) or saves registers as a block",
                  MMX[] = "an MMX instruction (it leaves the x87 stack unusable)",
                  CLOCK[] = "an instruction that reads a clock, random numbers or the processor's "
                            "identity",
                  UNKNOWN[] = "no instruction that is known";

static const char *one_byte_fault(const insn *i) {
    switch (i->op) {
    case 0xcd:
        return "int, as in int 0x80 (a system call)";
    case 0x6c:
    case 0x6d:
    case 0x6e:
    case 0x6f:
    case 0xe4:
    case 0xe5:
    case 0xe6:
    case 0xe7:
    case 0xec:
    case 0xed:
    case 0xee:
    case 0xef:
    case 0xf1:
    case 0xf4:
    case 0xfa:
    case 0xfb:
    case 0xca:
    case 0xcb:
    case 0xcf:
        return SYSTEM;
    case 0x8c:
    case 0x8e:
        return SEGMENT;
    case 0x9c:
    case 0x9d:
    case 0xfd:
        return FLAGS;
    case 0xd9: /* fldenv, fldcw, fnstenv; fnstcw alone does no harm */
        return is_memory(i) && (reg_of(i) == 4 || reg_of(i) == 5 || reg_of(i) == 6) ? FLOATS : NULL;
    case 0xdb: /* fninit and kin */
        return i->modrm == 0xe3 ? FLOATS : NULL;
    case 0xdd: /* frstor, fnsave */
        return is_memory(i) && (reg_of(i) == 4 || reg_of(i) == 6) ? FLOATS : NULL;
    case 0x8f:
        return reg_of(i) != 0 ? UNKNOWN : NULL;
    case 0xc6:
    case 0xc7:
        return reg_of(i) != 0 ? "a transaction" : NULL;
    case 0xfe:
        return reg_of(i) > 1 ? UNKNOWN : NULL;
    case 0xff:
        return reg_of(i) == 7 ? UNKNOWN : reg_of(i) == 3 || reg_of(i) == 5 ? SYSTEM : NULL;
    default:
        return NULL;
    }
}

/* 0F AE: of registers a fence or a segment's base; of memory a block of registers or a cache line.
 */
static const char *group_ae_fault(const insn *i) {
    unsigned reg = reg_of(i);
    if (i->encoding != LEGACY)
        return FLOATS;
    if (is_memory(i))
        return reg == 7 || (reg == 6 && i->p66) ? NULL : FLOATS;
    if (i->rep && reg < 4)
        return SEGMENT;
    return reg >= 5 && !i->p66 && !i->rep && !i->repne ? NULL : SYSTEM;
}

static bool is_mmx(const insn *i) {
    unsigned op = i->op;
    if (i->map == 2)
        return !i->p66 && (op <= 0x0b || (op >= 0x1c && op <= 0x1e));
    if (i->map == 3)
        return !i->p66 && op == 0x0f;
    if (op == 0xd6)
        return i->rep || i->repne; /* between MMX and SSE */
    if (op == 0x2a || op == 0x2c || op == 0x2d)
        return !i->rep && !i->repne;
    if (i->p66 || i->rep || i->repne)
        return false;
    return (op >= 0x60 && op <= 0x6b) || op == 0x6e || (op >= 0x6f && op <= 0x77) || op == 0x7e ||
           op == 0x7f || op == 0xc4 || op == 0xc5 || (op >= 0xd1 && op <= 0xdf) ||
           (op >= 0xe0 && op <= 0xe5) || (op >= 0xe7 && op <= 0xfe);
}

static const char *two_byte_fault(const insn *i) {
    unsigned op = i->op;
    if (op == 0x05)
        return "syscall (0f 05)";
    if (op == 0x34)
        return "sysenter (0f 34)";
    if (op == 0x31 || op == 0x33 || op == 0xa2)
        return CLOCK;
    if (op == 0x01 && i->modrm == 0xf9)
        return CLOCK;
    if (op == 0xc7)
        return is_memory(i) && reg_of(i) == 1 ? NULL : reg_of(i) >= 6 ? CLOCK : FLOATS;
    if (op == 0xa0 || op == 0xa1 || op == 0xa8 || op == 0xa9 || op == 0xb2 || op == 0xb4 ||
        op == 0xb5)
        return SEGMENT;
    if (op <= 0x09 || (op >= 0x20 && op <= 0x23) || (op >= 0x30 && op <= 0x37) || op == 0xaa ||
        op == 0x78 || op == 0x79)
        return SYSTEM;
    if (op == 0x0e || op == 0x0f)
        return MMX;
    return NULL;
}

static const char *fault_of(const insn *i) {
    if (i->segment)
        return SEGMENT;
    if (i->map == 0)
        return one_byte_fault(i);
    if (i->map == 1 && i->op == 0xae)
        return group_ae_fault(i);
    if (i->encoding != LEGACY)
        return NULL;
    if (is_mmx(i))
        return MMX;
    if (i->map == 1)
        return two_byte_fault(i);
    /* Virtual machines, shadow stacks, key locker, queues of other devices. */
    bool system = i->map == 2 && ((i->op >= 0x80 && i->op <= 0x82) || i->op == 0xf5 ||
                                  (i->op == 0xf6 && !i->p66 && !i->rep) || i->op >= 0xf8 ||
                                  i->op == 0xd8 || (i->rep && i->op >= 0xdc && i->op <= 0xdf));
    return system || (i->map == 3 && i->op == 0xf0) ? SYSTEM : NULL;
}

static int64_t distance_of(const insn *i) {
    int8_t near;
    int32_t far;
    if (i->immediate == 1) {
        memcpy(&near, i->code + i->at - 1, sizeof near);
        return near;
    }
    memcpy(&far, i->code + i->at - 4, sizeof far);
    return far;
}

kg_x86_insn kg_x86_decode(const unsigned char *code, size_t n) {
    kg_x86_insn out = {.refused = UNKNOWN};
    insn i = {.code = code, .n = n < MAX_LENGTH ? n : MAX_LENGTH};
    if (!read_opcode(&i))
        return out;
    i.shape = shape_of(&i);
    if (i.shape & X)
        return out;
    if (i.shape & M)
        read_modrm(&i);
    i.immediate = immediate_of(&i);
    i.at += i.immediate;
    if (i.at > i.n)
        return out;
    out.length = i.at;
    out.refused = fault_of(&i);
    out.environment = out.refused == FLOATS;
    out.branch = i.encoding == LEGACY && (i.shape & J);
    if (out.branch && i.p66) { /* makers of CPUs differ on how long it is */
        out.refused = UNKNOWN;
        return out;
    }
    if (out.branch)
        out.distance = distance_of(&i);
    if (i.map == 0 && i.op == 0xff && reg_of(&i) >= 2 && reg_of(&i) <= 5) {
        out.indirect = true;
        out.through_slot = (i.modrm & 0xc7) == 0x05;
    }
    return out;
}
