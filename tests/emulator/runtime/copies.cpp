// Asynchronous copies from global to shared memory. They land as late as they may, when the thread
// waits for their stage: who looks earlier finds memory that nobody has written.

#include <string.h>

#include <vector>

#include "checker.h"
#include "interface.h"
#include "launch.h"

namespace emulator {

void async_copy(void *to, const void *from, size_t bytes, bool is_there, const void *site) {
    if (is_there) {
        require_global(from);
        observe_aligned(from, bytes, Access::read, site);
    }
    forget_shared(to, bytes);
    // Another place in the kernel than the read's, as counters see it.
    const void *landing = static_cast<const char *>(site) + 1;
    current->copies.push_back(PendingCopy{to, is_there ? from : nullptr, bytes, landing, current->stages});
}

void async_copy_commit() { ++current->stages; }

void async_copy_wait(unsigned stages) {
    std::vector<PendingCopy> &copies = current->copies;
    // Their stages ascend.
    auto copy = copies.begin();
    for (; copy != copies.end() && copy->stage + stages < current->stages; ++copy) {
        observe_aligned(copy->to, copy->bytes, Access::write, copy->site);
        if (copy->from) memcpy(copy->to, copy->from, copy->bytes);
        else memset(copy->to, 0, copy->bytes);
    }
    copies.erase(copies.begin(), copy);
}

}  // namespace emulator
