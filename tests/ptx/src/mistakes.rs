//! Small kernels, right and wrong: what the machine computes, and what it finds.

use crate::decode::program;
use crate::machine::{Launch, run};
use crate::memory::Memory;

/// A kernel `k` of up to 64 threads with the address of `out` in `%rd1`, the thread in `%r1`, and the
/// address of its own word there in `%rd2`.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.8
        .target sm_90
        .address_size 64
        .func (.param .b32 func_retval0) twice(.param .b32 twice_param_0)
        {{
            .reg .b32 %r<3>;
            ld.param.u32 %r1, [twice_param_0];
            shl.b32 %r2, %r1, 1;
            st.param.b32 [func_retval0+0], %r2;
            ret;
        }}
        .visible .entry k(
            .param .u64 k_param_0
        )
        .maxntid 64, 1, 1
        {{
            .reg .pred %p<4>;
            .reg .b32 %r<12>;
            .reg .b64 %rd<8>;
            .shared .align 16 .b8 shared[512];
            ld.param.u64 %rd1, [k_param_0];
            mov.u32 %r1, %tid.x; // a comment
            mad.lo.s32 %r2, %r1, 4, 0;
            cvt.u64.u32 %rd2, %r2;
            add.s64 %rd2, %rd2, %rd1;
            {body}
            ret;
        }}"
    )
}

struct Setting {
    blocks: u32,
    threads: u32,
    cluster: u32,
    seed: u64,
}

const WARP: Setting = Setting { blocks: 1, threads: 32, cluster: 1, seed: 0 };

/// What is in `out`, 64 words of zeros before, after a launch.
fn outcome(body: &str, setting: &Setting) -> Result<Vec<u32>, String> {
    let program = program([kernel(body).as_str()])?;
    let mut memory = Memory::default();
    let out = memory.allocate(4 * 64).expect("so little is there");
    let launch = Launch {
        kernel: "k",
        grid: setting.blocks,
        block: setting.threads,
        shared_bytes: 0,
        is_cooperative: false,
        cluster: setting.cluster,
        params: &out.to_le_bytes(),
    };
    run(&program, &mut memory, launch, setting.seed, 100_000)?;
    let words = memory.bytes(out, 4 * 64)?.chunks(4);
    Ok(words.map(|word| u32::from_le_bytes(word.try_into().expect("four bytes"))).collect())
}

#[track_caller]
fn assert_fails(body: &str, setting: &Setting, reason: &str) {
    let error = outcome(body, setting).unwrap_err();
    assert!(error.contains(reason), "{error}");
}

#[test]
fn threads_store_what_a_function_returns() {
    let body = "{ .param .b32 param0;
        st.param.b32 [param0+0], %r1;
        .param .b32 retval0;
        call.uni (retval0), twice, (param0);
        ld.param.b32 %r3, [retval0+0]; }
        st.global.u32 [%rd2], %r3;";
    for seed in 0..5 {
        let words = outcome(body, &Setting { threads: 64, seed, ..WARP }).unwrap();
        assert!((0..).step_by(2).zip(words).all(|(expected, word)| word == expected));
    }
}

#[test]
fn loops_and_guards() {
    let body = "mov.u32 %r3, 0;
        $again:
        add.s32 %r3, %r3, 3;
        setp.lt.u32 %p1, %r3, %r1;
        @%p1 bra $again;
        setp.gt.u32 %p2, %r1, 5;
        @!%p2 st.global.u32 [%rd2], %r3;";
    assert_eq!(outcome(body, &WARP).unwrap()[..8], [3, 3, 3, 3, 6, 6, 0, 0]);
}

#[test]
fn a_shuffle_passes_values_and_a_vote_counts() {
    let body = "shfl.sync.bfly.b32 %r3|%p1, %r1, 1, 31, -1;
        setp.lt.u32 %p2, %r1, 3;
        vote.sync.ballot.b32 %r4, %p2, -1;
        add.s32 %r5, %r3, %r4;
        st.global.u32 [%rd2], %r5;";
    assert_eq!(outcome(body, &WARP).unwrap()[..4], [7 + 1, 7, 7 + 3, 7 + 2]);
}

/// Thread 0 reads what the last thread has stored.
const PASS_THROUGH_SHARED: &str = "mov.u32 %r5, shared;
    add.s32 %r6, %r2, %r5;
    st.shared.u32 [%r6], %r1;
    BARRIER
    ld.shared.u32 %r7, [%r5+252];
    st.global.u32 [%rd2], %r7;";

#[test]
fn a_barrier_holds_all_threads() {
    let right = PASS_THROUGH_SHARED.replace("BARRIER", "bar.sync 0;");
    let block = Setting { threads: 64, ..WARP };
    assert_eq!(outcome(&right, &block).unwrap()[0], 63);
    let wrong = PASS_THROUGH_SHARED.replace("BARRIER", "");
    assert_eq!(outcome(&wrong, &block).unwrap()[0], u32::MAX); // not written yet
}

#[test]
fn accesses_must_be_inside_and_aligned() {
    assert_fails("st.global.u32 [%rd2+256], %r1;", &WARP, "4 bytes at 256 of an allocation of 256");
    assert_fails("ld.global.u32 %r3, [%rd2+-4];", &WARP, "nothing is allocated");
    assert_fails("ld.global.v2.u32 {%r3, %r4}, [%rd2+4];", &WARP, "no multiple");
    assert_fails("ld.shared.u32 %r3, [%r2+512];", &WARP, "of shared memory, which ends before");
    assert_fails("mov.u64 %rd3, 4; ld.u32 %r3, [%rd3];", &WARP, "nothing is allocated");
}

#[test]
fn lanes_must_meet() {
    let apart = "setp.lt.u32 %p1, %r1, 16;
        @%p1 bra $low;
        bar.warp.sync -1;
        bra.uni $end;
        $low:
        bar.warp.sync -1;
        $end:";
    assert_fails(apart, &WARP, "meet at different instructions");
    let gone = "setp.eq.u32 %p1, %r1, 0; @%p1 ret;
        shfl.sync.idx.b32 %r3, %r1, 0, 31, -1;";
    assert_fails(gone, &WARP, "reads a lane that takes no part");
    assert_fails("bar.warp.sync 1;", &WARP, "not in its own mask");
}

#[test]
fn launches_must_end() {
    assert_fails("$again: bra.uni $again;", &WARP, "too many steps");
    let early = "setp.lt.u32 %p1, %r1, 32;
        @%p1 bar.warp.sync -1;
        @!%p1 barrier.cluster.wait.acquire;";
    assert_fails(early, &Setting { threads: 64, ..WARP }, "waits for others forever");
}

#[test]
fn asynchronous_copies_arrive_when_they_are_waited_for() {
    let body = "setp.ne.u32 %p1, %r1, 0; @%p1 ret;
        mov.u32 %r3, 7; st.global.u32 [%rd1+16], %r3;
        mov.u32 %r5, shared;
        cp.async.cg.shared.global.L2::cache_hint [%r5], [%rd1+16], 16, 4, %rd1;
        cp.async.commit_group;
        ld.shared.u32 %r6, [%r5];
        cp.async.wait_group 0;
        ld.shared.v2.u32 {%r7, %r8}, [%r5];
        st.global.u32 [%rd1], %r6; st.global.u32 [%rd1+4], %r7; st.global.u32 [%rd1+8], %r8;";
    assert_eq!(outcome(body, &WARP).unwrap()[..3], [7, 7, 0]);
    let late = Setting { seed: 1, ..WARP };
    assert_eq!(outcome(body, &late).unwrap()[..3], [u32::MAX, 7, 0]);
}

/// Each block of a cluster reads the rank of the other one from its shared memory.
const READ_PEER: &str = "mov.u32 %r3, %cluster_ctarank;
    mov.u32 %r5, shared;
    st.shared.u32 [%r5], %r3;
    barrier.cluster.arrive.release; barrier.cluster.wait.acquire;
    xor.b32 %r4, %r3, 1;
    cvt.u64.u32 %rd3, %r5; cvta.shared.u64 %rd4, %rd3;
    mapa.u64 %rd5, %rd4, %r4;
    ld.u32 %r6, [%rd5];
    mul.wide.u32 %rd6, %r3, 4; add.s64 %rd7, %rd1, %rd6;
    st.global.u32 [%rd7], %r6;";

#[test]
fn blocks_of_a_cluster_read_each_other() {
    let end = "barrier.cluster.arrive.release; barrier.cluster.wait.acquire;";
    for seed in 0..5 {
        let pair = Setting { blocks: 4, cluster: 2, seed, ..WARP };
        assert_eq!(outcome(&format!("{READ_PEER} {end}"), &pair).unwrap()[..2], [1, 0]);
    }
    let pair = Setting { blocks: 2, cluster: 2, ..WARP };
    let hurried = READ_PEER.replace("xor.b32", "setp.eq.u32 %p1, %r3, 0; @%p1 ret; xor.b32");
    assert_fails(&hurried, &pair, "shared memory of block 0, which has returned");
    let intruding = format!("{READ_PEER} st.u32 [%rd5], %r6; {end}");
    assert_fails(&intruding, &pair, "a store to another block's shared memory");
}

#[test]
fn what_is_not_known_is_named() {
    assert_fails("frob.b32 %r3, %r1;", &WARP, "frob.b32: not known here");
    assert_fails("add.s32 %r99, %r1, 1;", &WARP, "no register %r99");
    assert_fails("bra $nowhere;", &WARP, "no $nowhere");
    assert_fails("call.uni nobody;", &WARP, "no function nobody");
}
