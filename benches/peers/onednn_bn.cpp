// Times oneDNN's batch normalization under the identifiers of `cargo bench --bench cpu`.
//
//   g++ -O2 -std=c++17 -fopenmp benches/peers/onednn_bn.cpp -ldnnl -o target/onednn_bn
//   target/onednn_bn --output onednn.json
//
// Needs oneDNN 2 or 3 built with OpenMP: Debian's and Ubuntu's libdnnl-dev is. The version that was
// measured is asked of the library that was loaded and written into the output.
//
// What stands behind an identifier <pass>/<layout>/<dtype>/<extents>/<epilogue>/<config>:
//   train_forward   forward_training; mean and variance are outputs. oneDNN has no running statistics.
//   train_backward  backward: the gradients of source, scale and shift.
//   inference       forward_inference with use_global_stats.
//   copy            memcpy of the same bytes, split over the threads.
//   layout          the plain formats nchw and nhwc, never a blocked one. 2-D is measured as nhwc of
//                   1 x 1: the same bytes, and about 30 times faster in oneDNN 2.6 than its format nc.
//   dtype           f32, bf16 and f16 as far as the loaded version implements them; there is no f64.
//   epilogue        relu is the flag fuse_norm_relu, add_relu is fuse_norm_add_relu (oneDNN 3, where
//                   the CPU implements it). Both keep a mask for backward in oneDNN's workspace.
//   config          the number of OpenMP threads.
// All memory is allocated and touched before anything is timed.

#include <omp.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <ctime>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include <oneapi/dnnl/dnnl.hpp>

#if DNNL_CPU_THREADING_RUNTIME != DNNL_RUNTIME_OMP
#error "this oneDNN is not built with OpenMP, which is how the number of threads is set here"
#endif

using dnnl::memory;
using dnnl::normalization_flags;
using dnnl::prop_kind;
using forward_t = dnnl::batch_normalization_forward;
using backward_t = dnnl::batch_normalization_backward;
using args_t = std::unordered_map<int, memory>;

const std::vector<std::string> SHAPES = {
        "32x64x112x112", "32x256x56x56", "32x512x28x28", "32x1024x14x14",
        "32x2048x7x7", "8x64x56x56", "4096x1024", "128x100"};
const std::vector<std::string> PASSES = {"train_forward", "train_backward", "inference", "copy"};
const std::vector<std::string> LAYOUTS = {"channels-first", "channels-last"};
const std::vector<std::string> DTYPES = {"f32", "f16", "bf16"};
const std::vector<std::string> EPILOGUES = {"none", "relu", "add_relu"};
const float EPS = 1e-5f;

struct Options {
    std::string output, filter;
    std::vector<std::string> shapes = SHAPES, passes = PASSES, threads = {"1", "2"};
    bool quick = false, full = false;
};

struct Id {
    std::string pass, layout, dtype, extents, epilogue, threads;
    std::string text() const {
        return pass + "/" + layout + "/" + dtype + "/" + extents + "/" + epilogue + "/" + threads + "t";
    }
};

// The same choice as benches/cpu.rs makes: other element types and epilogues on two shapes only.
bool wanted(const Id &id, const Options &options) {
    bool matrix = std::count(id.extents.begin(), id.extents.end(), 'x') == 1;
    if (matrix && id.layout == "channels-first") return false;
    if (id.pass == "copy" && id.epilogue != "none") return false;
    bool plain = id.dtype == "f32" && id.epilogue == "none";
    bool sampled = (id.extents == "32x256x56x56" || id.extents == "4096x1024")
            && (id.dtype == "f32" || id.epilogue == "none");
    return (options.full || plain || sampled) && id.text().find(options.filter) != std::string::npos;
}

std::vector<std::string> split(const std::string &text, char by) {
    std::vector<std::string> parts;
    std::stringstream stream(text);
    for (std::string part; std::getline(stream, part, by);) parts.push_back(part);
    return parts;
}

// oneDNN 3 merged operation descriptors into primitive descriptors and split the one argument for
// scale and shift; what follows up to `flags_of` knows it. (oneDNN 2 takes them split as well, but
// has no fast implementation for it.)
#if DNNL_VERSION_MAJOR >= 3
const auto AFFINE = normalization_flags::use_scale | normalization_flags::use_shift;
#else
const auto AFFINE = normalization_flags::use_scale_shift;
#endif

forward_t::primitive_desc describe_forward(const dnnl::engine &engine, prop_kind kind,
        const memory::desc &data, normalization_flags flags) {
#if DNNL_VERSION_MAJOR >= 3
    return {engine, kind, data, data, EPS, flags, dnnl::primitive_attr(), true};
#else
    return {forward_t::desc(kind, data, EPS, flags), engine, true};
#endif
}

backward_t::primitive_desc describe_backward(const dnnl::engine &engine, const memory::desc &data,
        normalization_flags flags, const forward_t::primitive_desc &forward) {
#if DNNL_VERSION_MAJOR >= 3
    return {engine, prop_kind::backward, data, data, data, EPS, flags, forward, dnnl::primitive_attr(), true};
#else
    return {backward_t::desc(prop_kind::backward, data, data, EPS, flags), engine, forward, true};
#endif
}

std::optional<normalization_flags> flags_of(const std::string &epilogue) {
    if (epilogue == "none") return AFFINE;
    if (epilogue == "relu") return AFFINE | normalization_flags::fuse_norm_relu;
#if DNNL_VERSION_MAJOR >= 3
    return AFFINE | normalization_flags::fuse_norm_add_relu;
#else
    return std::nullopt;
#endif
}

// Scale and shift (or their gradients), as the arguments that hold them.
class Affine {
public:
    Affine() = default;
    Affine(const dnnl::engine &engine, memory::dim channels, bool gradient) {
        using tag = memory::format_tag;
        const auto f32 = memory::data_type::f32;
#if DNNL_VERSION_MAJOR >= 3
        const memory::desc vector({channels}, f32, tag::a);
        args_ = {{gradient ? DNNL_ARG_DIFF_SCALE : DNNL_ARG_SCALE, memory(vector, engine)},
                {gradient ? DNNL_ARG_DIFF_SHIFT : DNNL_ARG_SHIFT, memory(vector, engine)}};
#else
        const memory::desc pair({2, channels}, f32, tag::nc);
        args_ = {{gradient ? DNNL_ARG_DIFF_SCALE_SHIFT : DNNL_ARG_SCALE_SHIFT, memory(pair, engine)}};
#endif
        for (const auto &arg : args_) {
            const std::size_t count = arg.second.get_desc().get_size() / sizeof(float);
            std::fill_n(static_cast<float *>(arg.second.get_data_handle()), count, 1.0f);
        }
    }

    void add_to(args_t &args) const { args.insert(args_.begin(), args_.end()); }

private:
    args_t args_;
};

// The tensors of one shape, layout and element type, and the calls to time on them.
class Case {
public:
    Case(const std::string &layout, const std::string &dtype, const std::string &extents) {
        for (const auto &extent : split(extents, 'x')) dims_.push_back(std::stoll(extent));
        dims_.resize(4, 1);
        auto tag = layout == "channels-first" ? memory::format_tag::nchw : memory::format_tag::nhwc;
        auto type = dtype == "f32" ? memory::data_type::f32
                : dtype == "f16"   ? memory::data_type::f16
                                   : memory::data_type::bf16;
        data_ = memory::desc(dims_, type, tag);
        plain_ = memory::desc(dims_, memory::data_type::f32, tag);
        channel_ = memory::desc({dims_[1]}, memory::data_type::f32, memory::format_tag::a);
        for (auto *tensor : {&x_, &y_, &dy_, &dx_, &residual_, &dresidual_}) *tensor = random_tensor();
        affine_ = Affine(engine_, dims_[1], false);
        affine_gradient_ = Affine(engine_, dims_[1], true);
        mean_ = constant_vector(0.0f);
        variance_ = constant_vector(1.0f);
    }

    // Runs the pass once per call; the string names oneDNN's implementation. Empty if it has none.
    struct Call {
        dnnl::primitive primitive;
        args_t args;
        std::string implementation;
    };

    std::optional<Call> call(const std::string &pass, const std::string &epilogue) {
        auto flags = flags_of(epilogue);
        if (!flags) return std::nullopt;
        bool inference = pass == "inference";
        if (inference) *flags = *flags | normalization_flags::use_global_stats;
        auto described = describe_forward(engine_,
                inference ? prop_kind::forward_inference : prop_kind::forward_training, data_, *flags);
        if (!described) return std::nullopt;
        args_t args = {{DNNL_ARG_SRC, x_}, {DNNL_ARG_DST, y_}, {DNNL_ARG_MEAN, mean_},
                {DNNL_ARG_VARIANCE, variance_}};
        affine_.add_to(args);
        if (epilogue == "add_relu") args.insert({DNNL_ARG_SRC_1, residual_});
        memory workspace;
        if (epilogue != "none" && !inference) {
            workspace = memory(described.workspace_desc(), engine_);
            args.insert({DNNL_ARG_WORKSPACE, workspace});
        }
        Call forward {forward_t(described), args, described.impl_info_str()};
        if (pass != "train_backward") return forward;

        run(forward);
        auto reversed = describe_backward(engine_, data_, *flags, described);
        if (!reversed) return std::nullopt;
        args = {{DNNL_ARG_SRC, x_}, {DNNL_ARG_DIFF_DST, dy_}, {DNNL_ARG_MEAN, mean_},
                {DNNL_ARG_VARIANCE, variance_}, {DNNL_ARG_DIFF_SRC, dx_}};
        affine_.add_to(args);
        affine_gradient_.add_to(args);
        if (epilogue == "add_relu") args.insert({DNNL_ARG_DIFF_SRC_1, dresidual_});
        if (epilogue != "none") args.insert({DNNL_ARG_WORKSPACE, workspace});
        return Call {backward_t(reversed), args, reversed.impl_info_str()};
    }

    void run(const Call &call) {
        call.primitive.execute(stream_, call.args);
        stream_.wait();
    }

    void copy() {
        auto *to = static_cast<char *>(y_.get_data_handle());
        const auto *from = static_cast<const char *>(x_.get_data_handle());
        const std::size_t bytes = data_.get_size();
#pragma omp parallel
        {
            const std::size_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
            const std::size_t begin = bytes * thread / threads, end = bytes * (thread + 1) / threads;
            std::memcpy(to + begin, from + begin, end - begin);
        }
    }

private:
    memory random_tensor() {
        memory values(plain_, engine_), tensor(data_, engine_);
        std::mt19937 generator(1);
        std::normal_distribution<float> normal;
        auto *data = static_cast<float *>(values.get_data_handle());
        const std::size_t count = plain_.get_size() / sizeof(float);
        for (std::size_t i = 0; i < count; ++i) data[i] = normal(generator);
        dnnl::reorder(values, tensor).execute(stream_, values, tensor);
        stream_.wait();
        return tensor;
    }

    memory constant_vector(float value) {
        memory vector(channel_, engine_);
        std::fill_n(static_cast<float *>(vector.get_data_handle()), dims_[1], value);
        return vector;
    }

    dnnl::engine engine_ {dnnl::engine::kind::cpu, 0};
    dnnl::stream stream_ {engine_};
    memory::dims dims_;
    memory::desc data_, plain_, channel_;
    memory x_, y_, dy_, dx_, residual_, dresidual_;
    memory mean_, variance_;
    Affine affine_, affine_gradient_;
};

double seconds_now() {
    using clock = std::chrono::steady_clock;
    return std::chrono::duration<double>(clock::now().time_since_epoch()).count();
}

// The median time of a call in ns, over at least `least` samples and about `seconds`.
template <typename Call>
double measure(const Call &call, double seconds, std::size_t least) {
    auto clock = [&](std::size_t inner) {
        const double start = seconds_now();
        for (std::size_t i = 0; i < inner; ++i) call();
        return (seconds_now() - start) * 1e9 / inner;
    };
    double once = 0;
    for (int warm = 0; warm < 3; ++warm) once = clock(1);
    const auto inner = std::max<std::size_t>(1, 2e6 / once);
    clock(inner);
    std::vector<double> samples;
    const double stop = seconds_now() + seconds;
    while (samples.size() < least || seconds_now() < stop) samples.push_back(clock(inner));
    std::sort(samples.begin(), samples.end());
    const std::size_t half = samples.size() / 2;
    return samples.size() % 2 ? samples[half] : (samples[half - 1] + samples[half]) / 2;
}

// Core seconds used so far by everyone but this process, from Linux's /proc/stat.
std::optional<double> foreign_seconds() {
    std::ifstream file("/proc/stat");
    std::string cpu;
    double user, nice, system, idle, iowait, irq, softirq, steal;
    if (!(file >> cpu >> user >> nice >> system >> idle >> iowait >> irq >> softirq >> steal))
        return std::nullopt;
    const double everyone = (user + nice + system + irq + softirq + steal) / sysconf(_SC_CLK_TCK);
    return everyone - static_cast<double>(std::clock()) / CLOCKS_PER_SEC;
}

std::string device_name() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);)
        if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
    return "unknown CPU";
}

std::string quoted(const std::string &text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c;
    }
    return out + "\"";
}

struct Result {
    std::string id;
    double median_ns;
};

void measure_case(const std::vector<Id> &ids, const Options &options, std::vector<Result> &results) {
    const double seconds = options.quick ? 0.02 : 1.0;
    const std::size_t least = options.quick ? 3 : 15;
    Case tensors(ids[0].layout, ids[0].dtype, ids[0].extents);
    for (const auto &id : ids) {
        // A primitive keeps the thread count it was created under.
        omp_set_num_threads(std::stoi(id.threads));
        double median;
        std::string implementation = "memcpy";
        if (id.pass == "copy") {
            median = measure([&] { tensors.copy(); }, seconds, least);
        } else if (auto call = tensors.call(id.pass, id.epilogue)) {
            median = measure([&] { tensors.run(*call); }, seconds, least);
            implementation = call->implementation;
        } else {
            std::fprintf(stderr, "%-60s not supported\n", id.text().c_str());
            continue;
        }
        std::fprintf(stderr, "%-60s %12.2f us  %s\n", id.text().c_str(), median / 1e3, implementation.c_str());
        results.push_back({id.text(), median});
    }
}

std::vector<Result> measure_all(const Options &options) {
    std::vector<Result> results;
    for (const auto &extents : options.shapes)
        for (const auto &layout : LAYOUTS)
            for (const auto &dtype : DTYPES) {
                std::vector<Id> ids;
                for (const auto &pass : options.passes)
                    for (const auto &epilogue : EPILOGUES)
                        for (const auto &threads : options.threads) {
                            Id id {pass, layout, dtype, extents, epilogue, threads};
                            if (wanted(id, options)) ids.push_back(id);
                        }
                if (!ids.empty()) measure_case(ids, options, results);
            }
    return results;
}

void write(const Options &options, const std::vector<Result> &results, double foreign) {
    const auto *version = dnnl_version();
    std::ofstream file(options.output);
    file << "{\n \"peer\": \"oneDNN\",\n \"device\": " << quoted(device_name()) << ",\n \"versions\": {\"onednn\": \""
         << version->major << '.' << version->minor << '.' << version->patch << "\", \"compiler\": "
         << quoted(std::string("g++ ") + __VERSION__) << "},\n \"foreign_cpu_share\": ";
    if (foreign < 0) file << "null"; else file << foreign;
    file << ",\n \"results\": [\n";
    for (std::size_t i = 0; i < results.size(); ++i)
        file << "  {\"id\": " << quoted(results[i].id) << ", \"median_ns\": " << std::fixed << results[i].median_ns
             << (i + 1 < results.size() ? "},\n" : "}\n");
    file << " ]\n}\n";
    if (!file.flush()) throw std::runtime_error("cannot write " + options.output);
}

void check_all(const std::string &option, const std::vector<std::string> &items,
        bool (*valid)(const std::string &), const std::string &expected) {
    if (items.empty()) throw std::invalid_argument(option + ": expected " + expected + ", found nothing");
    for (const auto &item : items)
        if (!valid(item)) throw std::invalid_argument(option + ": expected " + expected + ", found " + item);
}

bool is_count(const std::string &text) {
    return !text.empty() && text.size() < 10 && text.find_first_not_of("0123456789") == std::string::npos
            && std::stoi(text) > 0;
}

bool is_shape(const std::string &text) {
    const auto extents = split(text, 'x');
    return (extents.size() == 2 || extents.size() == 4) && std::all_of(extents.begin(), extents.end(), is_count);
}

bool is_pass(const std::string &text) {
    return std::find(PASSES.begin(), PASSES.end(), text) != PASSES.end();
}

const char *USAGE =
        "usage: onednn_bn --output FILE.json [--shapes 32x64x112x112,128x100] [--passes train_forward,copy]\n"
        "                 [--threads 1,2] [--filter TEXT] [--full] [--quick]\n"
        "  --full   every element type and epilogue on every shape, not on two\n"
        "  --quick  a few repetitions: to try the program, not to quote\n";

Options parse(int argc, char **argv) {
    Options options;
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        if (option == "--help") { std::cout << USAGE; std::exit(0); }
        if (option == "--quick") { options.quick = true; continue; }
        if (option == "--full") { options.full = true; continue; }
        const bool known = option == "--output" || option == "--shapes" || option == "--passes"
                || option == "--threads" || option == "--filter";
        if (!known) throw std::invalid_argument("unknown option " + option);
        if (++i == argc) throw std::invalid_argument(option + ": expected a value");
        const std::string value = argv[i];
        if (option == "--output") options.output = value;
        if (option == "--filter") options.filter = value;
        if (option == "--shapes") options.shapes = split(value, ',');
        if (option == "--passes") options.passes = split(value, ',');
        if (option == "--threads") options.threads = split(value, ',');
    }
    if (options.output.empty()) throw std::invalid_argument("--output FILE.json is required");
    check_all("--shapes", options.shapes, is_shape, "NxC or NxCxHxW");
    check_all("--passes", options.passes, is_pass, "train_forward, train_backward, inference or copy");
    check_all("--threads", options.threads, is_count, "a number of threads");
    const unsigned cores = std::thread::hardware_concurrency();
    for (const auto &threads : options.threads)
        if (std::stoul(threads) > cores)
            throw std::invalid_argument("--threads " + threads + ": this machine has " + std::to_string(cores) + " cores");
    return options;
}

int main(int argc, char **argv) try {
    const Options options = parse(argc, argv);
    const double start = seconds_now();
    const auto before = foreign_seconds();
    const auto results = measure_all(options);
    const auto after = foreign_seconds();
    if (results.empty()) throw std::runtime_error("nothing measured: no identifier matches the options given");
    const double foreign = before && after ? (*after - *before) / (seconds_now() - start) : -1;
    if (foreign > 0.05)
        std::fprintf(stderr, "warning: other processes used %.0f%% of a core; measure again\n", foreign * 100);
    write(options, results, foreign);
    return 0;
} catch (const std::invalid_argument &error) {
    std::cerr << "error: " << error.what() << '\n' << USAGE;
    return 2;
} catch (const std::exception &error) {
    std::cerr << "error: " << error.what() << '\n';
    return 1;
}
