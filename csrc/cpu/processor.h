// What plans ask of the processor beside its instruction sets.
#pragma once

namespace lmser {

// Whether a cycle starts two multiply-adds of 64-byte registers, where there are any: what plans weigh filtering by.
// Another answer may be assumed to compare plans; gives the one until now.
bool fast_wide_products();
bool assume_fast_wide_products(bool fast);

}  // namespace lmser
