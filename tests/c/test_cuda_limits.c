/* Plans whose numbers no device has: each is said before anything is compiled or launched. */
#include "contract_util.h"

static void bind(const char *grid, const char *more, int64_t m, int arch, const char *says) {
    char source[1024];
    kg_error err = {0};
    kg_op *op = repo_op("kernels/ops/softmax.json");
    kg_plan *plan = NULL;
    kg_instance *inst = NULL;
    kg_tuning t;
    kg_constants constants = {.arch = arch, .max_shared = 232448, .num_sms = 132};
    snprintf(source, sizeof(source),
             "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", \"launches\": "
             "[{\"kernel\": \"k\", \"grid\": [%s], \"args\": [\"input\", \"output\", {\"i32\": "
             "\"M\"}], %s}]}\n*/\n",
             grid, more);
    CHECK_OK(kg_plan_from_source(source, strlen(source), "t.cu", op, &plan, &err), err);
    kg_tuning_default(plan, &t);
    kg_call c = softmax_call(TENSOR(KG_F32, m, 2), 1);
    c.device = KG_CUDA;
    int rc = kg_plan_bind(plan, op, &t, &constants, &c, &inst, &err);
    if (says == NULL)
        CHECK_OK(rc, err);
    else
        CHECK(rc != KG_OK);
    if (says != NULL)
        CHECK_HAS(err.msg, says);
    kg_instance_free(inst);
    kg_plan_free(plan);
    kg_op_free(op);
}

TEST(cuda_numbers_over_the_limits_are_named) {
    bind("\"M\"", "\"block\": [256]", 8, 80, NULL);
    bind("\"M * 1024 * 1024 * 1024\"", "\"block\": [256]", 8, 80, "launches[0].grid must be in");
    bind("1, \"M\"", "\"block\": [256]", 70000, 80, "launches[0].grid must be in [0, 65535]");
    bind("1", "\"block\": [\"M * 1024 * 1024 * 1024\"]", 8, 80, "launches[0].block must be in");
    bind("1", "\"block\": [64, 64]", 8, 80, "4096 threads; 1024 is the limit");
    bind("1", "\"block\": [64], \"shared\": \"232449\"", 8, 80, "launches[0].shared must be in");
    bind("\"M\"", "\"block\": [64], \"cluster\": [2]", 8, 80,
         "clusters need sm_90, this device is");
    bind("\"M\"", "\"block\": [64], \"cluster\": [16, 2]", 64, 90, "32 blocks; 16 is the limit");
    bind("\"M\"", "\"block\": [64], \"cluster\": [3]", 8, 90, "no multiple of the cluster's 3");
    bind("\"min(M, 8)\"", "\"block\": [64]", INT64_C(3) << 30, 80, "does not fit an i32");
}

TEST(cuda_tensor_maps_on_misaligned_strides_are_named) {
    static const struct {
        const char *map;
        int arch;
        const char *says;
    } rows[] = {
        {"\"strides\": [\"N * 4\"], \"box\": [32, 8], \"swizzle\": 128", 90, NULL},
        {"\"strides\": [\"N * 4 + 2\"], \"box\": [32, 8], \"swizzle\": 128", 90,
         "tensor_maps.map.strides[0] is 258 bytes, no multiple of 16"},
        {"\"strides\": [\"N * 4\"], \"box\": [64, 8], \"swizzle\": 128", 90,
         "tensor_maps.map.box[0] is 256 bytes"},
        {"\"strides\": [\"N * 4\"], \"box\": [3, 8], \"swizzle\": 0", 90,
         "tensor_maps.map.box[0] is 12 bytes"},
        {"\"strides\": [\"N * 4\"], \"box\": [32, \"M * 400\"], \"swizzle\": 128", 90,
         "tensor_maps.map.box[1]"},
        {"\"strides\": [\"N * 4\"], \"box\": [32, 8], \"swizzle\": 128", 80,
         "tensor maps need sm_90, this device is sm_80"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char source[1024];
        kg_error err = {0};
        kg_op *op = repo_op("kernels/ops/softmax.json");
        kg_plan *plan = NULL;
        kg_instance *inst = NULL;
        kg_tuning t;
        kg_constants constants = {.arch = rows[i].arch, .max_shared = 232448, .num_sms = 132};
        snprintf(source, sizeof source,
                 "/* kgen\n{\"format\": 1, \"op\": \"softmax\", \"target\": \"cuda\", "
                 "\"tensor_maps\": {\"map\": {\"tensor\": \"input\", \"dims\": [\"N\", \"M\"], "
                 "%s, \"l2\": 0}}, \"launches\": [{\"kernel\": \"k\", \"grid\": [\"M\"], "
                 "\"block\": [32], \"args\": [{\"map\": \"map\"}, \"output\"]}]}\n*/\n",
                 rows[i].map);
        CHECK_OK(kg_plan_from_source(source, strlen(source), "t.cu", op, &plan, &err), err);
        kg_tuning_default(plan, &t);
        kg_call c = softmax_call(TENSOR(KG_F32, 4, 64), 1);
        c.device = KG_CUDA;
        int rc = kg_plan_bind(plan, op, &t, &constants, &c, &inst, &err);
        if (rows[i].says == NULL)
            CHECK_OK(rc, err);
        else
            CHECK_HAS(rc != KG_OK ? err.msg : "bound", rows[i].says);
        kg_instance_free(inst);
        kg_plan_free(plan);
        kg_op_free(op);
    }
}
