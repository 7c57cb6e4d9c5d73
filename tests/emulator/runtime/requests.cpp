#include "requests.h"

#include <string.h>

#include <algorithm>

namespace emulator {

AllocationCounters &LaunchCounters::allocation(uint64_t id) {
    if (id == latest_id_) return allocations[latest_];
    const auto [entry, fresh] = index_.emplace(id, allocations.size());
    if (fresh) {
        allocations.emplace_back();
        allocations.back().id = id;
    }
    latest_id_ = id;
    latest_ = entry->second;
    return allocations[latest_];
}

static size_t hash(const void *address) {
    return (reinterpret_cast<uintptr_t>(address) * 0x9e3779b97f4a7c15u) >> 32;
}

unsigned Sites::index(const void *address) {
    size_t at = hash(address) & (slots_.size() - 1);
    while (slots_[at].address != address) {
        if (!slots_[at].address) {
            if (2 * (count_ + 1) > slots_.size()) {
                grow();
                return index(address);
            }
            slots_[at] = Slot{address, count_++};
            break;
        }
        at = (at + 1) & (slots_.size() - 1);
    }
    return slots_[at].index;
}

void Sites::grow() {
    std::vector<Slot> old(2 * slots_.size());
    old.swap(slots_);
    for (const Slot &slot : old) {
        if (!slot.address) continue;
        size_t at = hash(slot.address) & (slots_.size() - 1);
        while (slots_[at].address) at = (at + 1) & (slots_.size() - 1);
        slots_[at] = slot;
    }
}

void RequestLog::add(unsigned site, unsigned lane, uint64_t allocation, bool write,
                     uint64_t address, unsigned bytes) {
    if (site >= places_.size()) places_.resize(site + 1);
    Place &place = places_[site];
    if (place.requests.empty()) touched_.push_back(site);
    place.bytes = bytes;
    const uint32_t occurrence = place.accesses[lane]++;
    if (occurrence == place.requests.size()) {
        place.requests.emplace_back();
        place.requests.back().allocation = allocation;
        place.requests.back().write = write;
    }
    Request &request = place.requests[occurrence];
    request.lanes |= 1u << lane;
    request.addresses[lane] = address;
}

static unsigned sectors(const Request &request, unsigned bytes) {
    constexpr unsigned sector = 32;
    std::vector<uint64_t> wide;
    uint64_t narrow[64];
    uint64_t *numbers = narrow;
    unsigned count = 0;
    if (bytes > sector) {
        wide.resize(32 * (bytes / sector + 2));
        numbers = wide.data();
    }
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(request.lanes >> lane & 1)) continue;
        const uint64_t first = request.addresses[lane] / sector;
        const uint64_t last = (request.addresses[lane] + bytes - 1) / sector;
        // Neighbouring lanes mostly share a sector.
        for (uint64_t number = first; number <= last; ++number)
            if (count == 0 || numbers[count - 1] != number) numbers[count++] = number;
    }
    if (!std::is_sorted(numbers, numbers + count)) std::sort(numbers, numbers + count);
    return static_cast<unsigned>(std::unique(numbers, numbers + count) - numbers);
}

// Wavefronts of some lanes: 32 banks of 4 bytes, each of which serves one word at a time.
static unsigned wavefronts(const Request &request, unsigned bytes, uint32_t lanes) {
    uint64_t words[32 * 4];
    unsigned count = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        if (!(lanes >> lane & 1)) continue;
        const uint64_t first = request.addresses[lane] / 4;
        const uint64_t last = (request.addresses[lane] + bytes - 1) / 4;
        for (uint64_t word = first; word <= last; ++word) words[count++] = word;
    }
    std::sort(words, words + count);
    count = static_cast<unsigned>(std::unique(words, words + count) - words);
    unsigned in_bank[32] = {}, most = 0;
    for (unsigned i = 0; i < count; ++i) most = std::max(most, ++in_bank[words[i] % 32]);
    return most;
}

// 8 bytes a lane are served in two halves of a warp, 16 bytes in four quarters.
static unsigned extra_wavefronts(const Request &request, unsigned bytes) {
    if (bytes > 16) return 0;  // a struct: several instructions, which the compiler chooses
    const unsigned parts = bytes <= 4 ? 1 : bytes <= 8 ? 2 : 4;
    const unsigned width = 32 / parts;
    unsigned extra = 0;
    for (unsigned part = 0; part < parts; ++part) {
        const uint32_t mask = (width == 32 ? 0xffffffffu : (1u << width) - 1) << (part * width);
        const uint32_t lanes = request.lanes & mask;
        if (lanes) extra += wavefronts(request, bytes, lanes) - 1;
    }
    return extra;
}

void RequestLog::flush(LaunchCounters &counters) {
    for (const unsigned site : touched_) {
        Place &place = places_[site];
        for (const Request &request : place.requests) {
            if (request.allocation == 0) {
                ++counters.shared.requests;
                counters.shared.extra_wavefronts += extra_wavefronts(request, place.bytes);
                continue;
            }
            AllocationCounters &allocation = counters.allocation(request.allocation);
            Traffic &traffic = request.write ? allocation.written : allocation.read;
            ++traffic.requests;
            traffic.sectors += sectors(request, place.bytes);
        }
        place.requests.clear();
        memset(place.accesses, 0, sizeof place.accesses);
    }
    touched_.clear();
}

}  // namespace emulator
