// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// The operators that programs with compiled kernels call.
#ifndef GAUNT_OPS_H
#define GAUNT_OPS_H

#include <string>

namespace Gaunt {

// Registers them in libtorch. Empty, or the reason why there are none in this process.
std::string register_ops();

}    // namespace Gaunt

#endif
