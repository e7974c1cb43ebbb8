// The C interface of the native engine: the functions that charlm/model/native/ calls. Their arguments are plain structures of
// 64-bit fields. The file is compiled once per instruction set.

#include "dropout.h"
#include "layer.h"
#include "linear.h"
#include "loss.h"
#include "optimizer.h"
#include "plan.h"
#include "sampling.h"

#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

using namespace charlm;

#define PUBLIC extern "C" __attribute__((visibility("default")))

PUBLIC int charlm_interface_version() { return 5; }

PUBLIC const char* charlm_instruction_set() { return CHARLM_ISA; }

// The size of a shared structure in bytes; 0 for an unknown name. charlm/model/native/library.py compares it with its own.
PUBLIC int64_t charlm_sizeof(const char* structure) {
#define SIZE_OF(name) \
    if (!strcmp(structure, #name)) return sizeof(name)
    SIZE_OF(Layer);
    SIZE_OF(Packing);
    SIZE_OF(Linear);
    SIZE_OF(WeightGradient);
    SIZE_OF(SumById);
    SIZE_OF(PeepholeGradient);
    SIZE_OF(CrossEntropy);
    SIZE_OF(Dropping);
    SIZE_OF(Generation);
    SIZE_OF(Update);
    SIZE_OF(PlanShape);
    SIZE_OF(PlanParameters);
    SIZE_OF(PlanBatch);
#undef SIZE_OF
    return 0;
}

// The number of values of a shared enumeration; 0 for an unknown name.
PUBLIC int64_t charlm_count(const char* enumeration) {
    if (!strcmp(enumeration, "Kind")) return KIND_COUNT;
    if (!strcmp(enumeration, "Rule")) return RULE_COUNT;
    return 0;
}

// Whether the processor and the operating system can run a library compiled for `level`.
PUBLIC int charlm_processor_has(const char* level) {
    if (!strcmp(level, "portable")) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (!strcmp(level, "avx2")) return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (!strcmp(level, "avx512")) return avx512;
    const bool avx512_bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
    if (!strcmp(level, "avx512_bf16")) return avx512_bf16;
#if defined(__linux__)
    if (!strcmp(level, "amx") && avx512_bf16) {
        unsigned a, b, c, d;
        __asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
        const bool tiles = (d >> 22 & 1) && (d >> 24 & 1);  // AMX-BF16, AMX-TILE
        // Linux lets a process use the tile state (component 18) on request: ARCH_REQ_XCOMP_PERM.
        return tiles && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
    }
#endif
#endif
    return 0;
}

PUBLIC void charlm_pack(const Packing* p) { p->bf16 ? pack<bf16>(*p) : pack<float>(*p); }

PUBLIC void charlm_linear(const Linear* p) { p->bf16 ? linear<bf16>(*p) : linear<float>(*p); }

PUBLIC void charlm_weight_gradient(const WeightGradient* p) {
    p->bf16 ? weight_gradient<bf16>(*p) : weight_gradient<float>(*p);
}

PUBLIC void charlm_layer_forward(const Layer* layer) { run_layer(*layer, true); }

PUBLIC void charlm_layer_backward(const Layer* layer) { run_layer(*layer, false); }

PUBLIC void charlm_sum_by_id(const SumById* p) { p->bf16 ? sum_by_id<bf16>(*p) : sum_by_id<float>(*p); }

PUBLIC void charlm_peephole_gradient(const PeepholeGradient* p) {
    p->bf16 ? peephole_gradient<bf16>(*p) : peephole_gradient<float>(*p);
}

PUBLIC void charlm_cross_entropy(const CrossEntropy* p) { p->bf16 ? cross_entropy<bf16>(*p) : cross_entropy<float>(*p); }

PUBLIC void charlm_drop(const Dropping* d) { d->bf16 ? drop<bf16>(*d) : drop<float>(*d); }

PUBLIC void charlm_generate(const Generation* p) { p->bf16 ? generate<bf16>(*p) : generate<float>(*p); }

PUBLIC void charlm_plan_new(const PlanShape* shape, PlanBatch* batch) { batch->plan = new AnyPlan(*shape); }

PUBLIC int charlm_plan_run(PlanBatch* batch) { return ((AnyPlan*)batch->plan)->run(batch); }

PUBLIC void charlm_plan_delete(PlanBatch* batch) { delete (AnyPlan*)batch->plan; }

PUBLIC void charlm_gradient_norm(Update* p) { gradient_norm(*p); }

PUBLIC void charlm_update(const Update* p) { update(*p); }
