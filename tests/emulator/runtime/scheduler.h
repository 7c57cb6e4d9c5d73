// Who runs next. Threads run until they wait, and the seed decides which of those that can run is
// taken: it permutes blocks, warps and lanes.
#pragma once

#include <stdint.h>

#include <vector>

#include "fiber.h"

namespace emulator {

struct Thread;
struct Warp;
struct Block;
struct Cluster;
struct Launch;
enum class Waiting : uint8_t;

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0x1234567u) {}
    // Below `bound`, which is small: the bias does not matter here.
    uint32_t below(uint32_t bound);

  private:
    uint64_t state_;
};

// Warps that have a thread to run, in an order of precedence that can be permuted.
class ReadyWarps {
  public:
    void resize(unsigned warps);
    void insert(unsigned slot);
    void remove(unsigned slot);
    // The first ready warp at a rank of `from` or more, else the first of all; -1: none.
    int first(unsigned from) const;
    unsigned size() const { return static_cast<unsigned>(slot_at_.size()); }
    void swap_ranks(unsigned a, unsigned b);

  private:
    bool ready_at(unsigned rank) const { return bits_[rank / 64] >> (rank % 64) & 1; }

    std::vector<uint64_t> bits_;  // by rank
    std::vector<unsigned> rank_of_, slot_at_;
};

class Scheduler {
  public:
    Scheduler(Launch &launch, uint64_t seed);

    // Runs all blocks. False: no memory for them.
    bool run_all();

    // The current thread waits from here until someone wakes it. The caller has to look whether
    // what it waits for has just come about, and then to call `run_next`.
    void wait(Thread &thread, Waiting reason);
    void wake(Warp &warp, unsigned lanes);
    // The same for what some atomic will change: everyone who waits so looks again.
    void spin(Thread &thread);
    void wake_spinning();
    void run_next();
    // Lets others run first, now and then.
    void maybe_yield();
    // Changes the precedence of two warps.
    void reshuffle();
    // Abandons all threads, and the current one's stack with them.
    [[noreturn]] void abandon();

    uint64_t switches() const { return switches_; }

  private:
    // Seeds 0 and 1 are the plain orders, forwards and backwards; the others are random.
    enum class Policy : uint8_t { forwards, backwards, precedence, uniform };

    static void thread_main();
    void finish(Thread &thread);
    bool make_places(unsigned clusters);
    void order_clusters(unsigned clusters);
    void start_cluster(Cluster &place);
    void start_block(Block &place, unsigned index);
    Thread *pick();
    unsigned pick_lane(const Warp &warp);
    void begin(Thread &thread, char *stack);
    void report_deadlock();

    Launch &launch_;
    Policy policy_;
    Random random_;
    ReadyWarps ready_;
    std::vector<Block> places_;        // resident blocks, cluster by cluster
    std::vector<Cluster> clusters_;
    std::vector<Warp *> warps_;        // by slot
    std::vector<unsigned> order_;      // in which clusters begin
    size_t next_cluster_ = 0;
    std::vector<Thread *> spinning_;
    unsigned live_ = 0;  // threads of resident blocks that have not returned
    uint64_t switches_ = 0;
    Fiber host_;
};

}  // namespace emulator
