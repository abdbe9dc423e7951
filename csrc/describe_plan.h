// What a convolution would do, in words and numbers.
#pragma once

#include <pybind11/pybind11.h>

namespace lmser {

void add_plan(pybind11::module_& m);

}  // namespace lmser
