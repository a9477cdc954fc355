// Runs a kernel of src/kernels on the CPU: `main KERNEL < launch > outputs`.
//
// stdin: 64-bit numbers, then the values of the inputs. The numbers: grid x and y, offset, 1 for threads in backward order,
// then three lists, each after its length: sizes, lengths of the inputs, lengths of the outputs. Buffers start `offset` values into their memory; the
// rest of it, and every output, is poisoned, so that an element that is not written, or one outside, shows.
#include "gram_terms.cu"
#include "modulated_norm.cu"
#include "q_sample.cu"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

static void fail(const char* what) {
    std::fprintf(stderr, "%s\n", what);
    std::exit(1);
}

static size_t number() {
    uint64_t value;
    if (std::fread(&value, sizeof value, 1, stdin) != 1) {
        fail("the launch ends early");
    }
    return value;
}

static std::vector<size_t> numbers() {
    std::vector<size_t> list(number());
    for (size_t& value : list) {
        value = number();
    }
    return list;
}

static Block grid;
static size_t offset;

template <class T>
struct Buffer {
    static constexpr size_t GUARD = 64;
    // Not one poison for both: what is read outside must not pass for what was never written.
    static constexpr unsigned char INPUT_POISON = 0x55, OUTPUT_POISON = 0xff;
    std::vector<T> memory;
    size_t count;

    explicit Buffer(size_t count, unsigned char poison = OUTPUT_POISON) : memory(offset + count + GUARD), count(count) {
        __builtin_memset(memory.data(), poison, memory.size() * sizeof(T));
    }
    T* values() { return memory.data() + offset; }
    static Buffer read(size_t count) {
        Buffer buffer(count, INPUT_POISON);
        if (std::fread(buffer.values(), sizeof(T), count, stdin) != count) {
            fail("an input ends early");
        }
        return buffer;
    }
    void write() {
        const auto* bytes = reinterpret_cast<const unsigned char*>(memory.data());
        for (size_t i = 0; i < memory.size() * sizeof(T); ++i) {
            const bool is_inside = i / sizeof(T) >= offset && i / sizeof(T) < offset + count;
            if (!is_inside && bytes[i] != OUTPUT_POISON) {
                fail("the kernel writes outside its output");
            }
        }
        std::fwrite(values(), sizeof(T), count, stdout);
    }
};

template <class Kernel>
static void run(Kernel kernel) {
    for (blockIdx.y = 0; blockIdx.y < grid.y; ++blockIdx.y) {
        for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
            kernel();
        }
    }
}

int main(int argc, char** argv) {
    const std::string kernel = argc == 2 ? argv[1] : "";
    grid.x = unsigned(number());
    grid.y = unsigned(number());
    offset = number();
    is_backwards = number() == 1;
    const std::vector<size_t> wide = numbers(), inputs = numbers(), outputs = numbers();
    const std::vector<unsigned> sizes(wide.begin(), wide.end());
    if (kernel == "q_sample") {
        auto x_start = Buffer<float>::read(inputs.at(0));
        auto draws = Buffer<unsigned>::read(inputs.at(1));
        Buffer<float> x_t(outputs.at(0));
        run([&] { q_sample(x_start.values(), reinterpret_cast<Draw*>(draws.values()), x_t.values(), sizes.at(0)); });
        x_t.write();
    } else if (kernel == "gram_terms") {
        auto pred_noise = Buffer<float>::read(inputs.at(0));
        auto draws = Buffer<unsigned>::read(inputs.at(1));
        Buffer<double> gram(outputs.at(0)), cross(outputs.at(1));
        run([&] {
            gram_terms(pred_noise.values(), reinterpret_cast<Draw*>(draws.values()), gram.values(), cross.values(), sizes.at(0),
                       sizes.at(1), sizes.at(2), sizes.at(3), sizes.at(4));
        });
        gram.write();
        cross.write();
    } else if (kernel == "modulated_norm") {
        auto x = Buffer<float>::read(inputs.at(0)), shift = Buffer<float>::read(inputs.at(1)), scale = Buffer<float>::read(inputs.at(2));
        Buffer<float> y(outputs.at(0));
        run([&] {
            modulated_norm(x.values(), shift.values(), scale.values(), y.values(), sizes.at(0), sizes.at(1), sizes.at(2), sizes.at(3));
        });
        y.write();
    } else {
        fail("no such kernel");
    }
}
