#include "registry.h"

#include <string.h>

#include <algorithm>

#include "interface.h"

namespace emulator {

// In a function, since kernels register before this file's own initialisers may have run.
static std::vector<Kernel> &registered() {
    static std::vector<Kernel> kernels;
    return kernels;
}

static bool by_name(const Kernel &a, const Kernel &b) { return strcmp(a.name, b.name) < 0; }

Registration::Registration(const char *name, void (*run)(const void *), size_t params_bytes,
                           unsigned threads) {
    const Kernel kernel{name, run, params_bytes, threads};
    std::vector<Kernel> &kernels = registered();
    kernels.insert(std::upper_bound(kernels.begin(), kernels.end(), kernel, by_name), kernel);
}

const std::vector<Kernel> &kernels() { return registered(); }

const Kernel *find_kernel(const std::string &name) {
    for (const Kernel &kernel : registered())
        if (name == kernel.name) return &kernel;
    return nullptr;
}

}  // namespace emulator
