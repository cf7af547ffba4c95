/* What disassemblers print, cut down to the loops. */
#include "test.h"
#include "tune/listing.h"

/* nvdisasm -c: a copy loop, a main loop with a wait for an mbarrier in it, a cold block behind the
 * end that jumps back, and the trap. */
static const char nvdisasm_text[] =
    "\t.target\tsm_90a\n"
    ".text.gemm:\n"
    "        /*0000*/                   LDC R1, c[0x0][0x28] ;\n"
    ".L_x_1:\n"
    "        /*0010*/                   LDG.E R3, desc[UR4][R2.64] ;\n"
    "        /*0020*/                   IADD3 R7, R7, -0x1, RZ ;\n"
    "        /*0030*/               @P1 BRA `(.L_x_1) ;\n"
    ".L_x_2:\n"
    "        /*0040*/                   MOV R3, R9 ;\n"
    ".L_x_3:\n"
    "        /*0050*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [R3], R4 ;\n"
    "        /*0060*/                   NOP ;\n"
    "        /*0070*/              @!P0 BRA `(.L_x_3) ;\n"
    "        /*0080*/                   HGMMA.64x128x16.F32 R24, gdesc[UR4], R24 ;\n"
    "        /*0090*/               @P2 BRA `(.L_x_2) ;\n"
    "        /*00a0*/                   EXIT ;\n"
    ".L_x_9:\n"
    "        /*00b0*/                   NOP ;\n"
    "        /*00c0*/                   BRA `(.L_x_2) ;\n"
    ".L_x_10:\n"
    "        /*00d0*/                   BRA `(.L_x_10);\n";

static const char cuobjdump_text[] =
    "\t\tFunction : dot\n"
    "        /*0000*/                   LDC R1, c[0x0][0x28] ;   /* 0x00000a00ff017b82 */\n"
    "                                                            /* 0x000fe20000000800 */\n"
    "        /*0010*/                   FFMA R4, R3, R3, R4 ;    /* 0x0000000000007919 */\n"
    "        /*0020*/                   MOV R3, R9 ;             /* 0x0000000000007919 */\n"
    "        /*0030*/              @!P1 BRA 0x10 ;               /* 0x0000000000388947 */\n"
    "        /*0040*/                   BRA 0x40;                /* 0x0000000000388947 */\n";

static const char objdump_text[] = "\n/tmp/x:     file format elf64-x86-64\n\n"
                                   "0000000000001000 <sm>:\n"
                                   "    1000:\tcmp    %rsi,%rdi\n"
                                   "    1003:\tjge    1020 <sm+0x20>\n"
                                   "    1009:\tvmovups (%rdx,%rax,4),%ymm0\n"
                                   "    100e:\tadd    $0x8,%rax\n"
                                   "    1012:\tjl     1009 <sm+0x9>\n"
                                   "    1014:\tcall   1000 <sm>\n"
                                   "    1020:\tret\n"
                                   "0000000000002000 <kg_entry_0>:\n"
                                   "    2000:\tjmp    1000 <sm>\n";

static kg_buf of(const char *text, bool sass, kg_listing_options o) {
    kg_buf b;
    kg_error err;
    kg_buf_init(&b, 0);
    CHECK_OK(kg_listing_text(text, strlen(text), sass, &o, &b, &err), err);
    return b;
}

TEST(listing_of_nvdisasm) {
    kg_buf b = of(nvdisasm_text, true, (kg_listing_options){0});
    CHECK_HAS(b.data, "gemm: 14 instructions; innermost loops 40..90 (6), 10..30 (3)\n");
    CHECK_HAS(b.data, "\nloop of gemm:\n    40  MOV R3, R9\n");
    CHECK(strstr(b.data, "HGMMA") < strstr(b.data, "LDG.E"));
    CHECK(!strstr(b.data, "EXIT"));
    kg_buf_free(&b);
    b = of(nvdisasm_text, true, (kg_listing_options){.whole = true});
    CHECK_HAS(b.data, "    a0  EXIT\n");
    CHECK_HAS(b.data, "    d0  BRA `(.L_x_10)\n");
    kg_buf_free(&b);
}

TEST(listing_of_cuobjdump) {
    kg_buf b = of(cuobjdump_text, true, (kg_listing_options){0});
    CHECK_STR(b.data, "dot: 5 instructions; innermost loops 10..30 (3)\n\nloop of dot:\n"
                      "    10  FFMA R4, R3, R3, R4\n    20  MOV R3, R9\n    30  @!P1 BRA 0x10\n");
    kg_buf_free(&b);
}

TEST(listing_of_objdump) {
    kg_buf b = of(objdump_text, false, (kg_listing_options){0});
    CHECK_STR(b.data, "sm: 7 instructions; innermost loops 1009..1012 (3)\n"
                      "kg_entry_0: 1 instructions\n\nloop of sm:\n"
                      "  1009  vmovups (%rdx,%rax,4),%ymm0\n  100e  add $0x8,%rax\n"
                      "  1012  jl 1009 <sm+0x9>\n");
    kg_buf_free(&b);
}

TEST(listing_keeps_to_its_room) {
    kg_buf many;
    kg_error err;
    kg_buf_init(&many, 0);
    kg_buf_puts(&many, "0000000000000000 <f\xff>:\n");
    for (int i = 0; i < 4000; i++)
        kg_buf_printf(&many, "  %x:\tvaddps %%ymm%d,%%ymm1,%%ymm2\n", i * 4, i % 16);
    kg_buf_printf(&many, "  %x:\tjne 0 <f>\n", 4000 * 4);
    for (size_t room = 700; room < 30000; room += 7001) {
        kg_buf b = of(many.data, false, (kg_listing_options){.bytes = room});
        CHECK(b.len <= room);
        CHECK_HAS(b.data, "f?: 4001 instructions; innermost loops 0..3e80 (4001)");
        CHECK_HAS(b.data, " more instructions are left out)\n");
        kg_buf_free(&b);
    }
    kg_buf_free(&many);
    kg_buf_init(&many, 0);
    CHECK_INT(kg_listing_text("nothing", 7, false, NULL, &many, &err), KG_EFORMAT);
    CHECK_INT(kg_listing("no image", 8, NULL, &many, &err), KG_EFORMAT);
    kg_buf_free(&many);
}
