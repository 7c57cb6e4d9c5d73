//! What a kernel must not use does not compile, so that nobody tests something else than what runs
//! on a GPU.
#![cfg(emulated)]

use std::io::Write;
use std::process::{Command, Stdio};

/// The compiler's complaint about a kernel of one statement; `None`: it compiles.
fn complaint(statement: &str) -> Option<String> {
    let source = format!(
        "#include \"device.cuh\"\n\
         struct Params {{ float *values; unsigned *counter; }};\n\
         __device__ void kernel(const Params &params) {{ {statement} }}\n\
         KERNEL(one_statement, 32, Params, kernel)\n"
    );
    let folder = env!("CARGO_MANIFEST_DIR");
    let mut compiler = Command::new(env!("EMULATOR_CXX"))
        .args(["-x", "c++", "-std=c++17", "-fsyntax-only", "-DWARPNORM_EMULATOR"])
        .args(["-I", &format!("{folder}/../../kernels"), "-I", &format!("{folder}/runtime"), "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    compiler.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    let output = compiler.wait_with_output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Breaks if an approximate function, a raw shared array or `__activemask` gets a meaning here.
#[test]
fn forbidden_names_do_not_compile() {
    for statement in [
        "params.values[0] = rsqrtf(2.0f);",
        "params.values[0] = rsqrt(2.0);",
        "params.values[0] = __fdividef(1.0f, 3.0f);",
        "params.values[0] = __expf(1.0f);",
        "params.values[0] = __logf(1.0f);",
        "params.counter[0] = __activemask();",
        "__shared__ float values[32]; params.values[0] = values[0];",
        "extern __shared__ float values[]; params.values[0] = values[0];",
        // Not CUDA without further ado, so not here either.
        "params.values[0] = __shfl_xor(1.0f, 1);",
        "atomicAdd(params.values, 1.0f);",
        "params.values[0] = __shfl_sync(0xffffffffu, static_cast<short>(1), 0);",
    ] {
        assert!(complaint(statement).is_some(), "compiles: {statement}");
    }
}

/// Breaks if the test above passes because nothing compiles, or a promised name is missing.
#[test]
fn promised_names_compile() {
    for statement in [
        "",
        "params.values[0] = sqrtf(2.0f) + expf(1.0f) + tanhf(1.0f) + erff(1.0f) + erfcf(1.0f);",
        "params.values[0] = fminf(1, 2) + fmaxf(1, 2) + fabsf(-1) + fmaf(1, 2, 3) + log1pf(1);",
        "double x = sqrt(2.0) + fma(1.0, 2.0, 3.0) + exp(1.0) + fabs(-1.0) + erf(1.0);\
         params.values[0] = x; params.values[1] = ldexp(x, 2) + frexp(x, nullptr);",
        "params.counter[0] = __popc(1) + __ffs(1) + __clz(1) + isnan(1.0f) + isinf(1.0);",
        "params.counter[0] = min(1u, 2u) + max(1, 2); params.values[0] = min(1.0f, 2.0f);",
        "params.counter[0] = atomicAdd(params.counter, 1) + atomicInc(params.counter, 3) +\
         atomicExch(params.counter, 1) + atomicCAS(params.counter, 1, 2) +\
         atomicMax(params.counter, 1);",
        "params.counter[0] = __any_sync(~0u, 1) + __all_sync(~0u, 1) + __ballot_sync(~0u, 1);",
        "params.values[0] = __shfl_sync(~0u, 1.0f, 0) + __shfl_down_sync(~0u, 1.0, 1, 16) +\
         __shfl_up_sync(~0u, 1, 1) + __shfl_xor_sync(~0u, int64_t(1), 1);",
        "__syncthreads(); __syncwarp(); __threadfence();",
        "params.values[0] = __uint_as_float(__float_as_uint(1.0f)) +\
         __int_as_float(__float_as_int(1.0f));",
        "SHARED_ARRAY(float, values, 32); values[threadIdx.x] = blockDim.x + gridDim.x;\
         params.values[blockIdx.x] = *block_shared<float>();",
    ] {
        assert_eq!(complaint(statement), None, "{statement}");
    }
}
