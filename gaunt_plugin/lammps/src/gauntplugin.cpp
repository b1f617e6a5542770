// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// The file that LAMMPS loads at every start. It stays small: libtorch is opened when an input
// asks for `pair_style gaunt`, so other simulations neither wait for it nor share their process
// with it.
#include "lammps_plugin_api.h"

#include "lammps.h"
#include "on_all_ranks.h"

#include <dlfcn.h>
#include <stdexcept>
#include <string>

#ifndef GAUNT_LAMMPS_VERSION
#error "compile with -DGAUNT_LAMMPS_VERSION=YYYYMMDD, the numeric version of the LAMMPS headers"
#endif

using namespace LAMMPS_NS;

// The pair style's library lies beside this one.
static std::string library_path()
{
  Dl_info info;
  if (dladdr(reinterpret_cast<void *>(&library_path), &info) == 0 || !info.dli_fname) return "";
  const std::string here = info.dli_fname;
  const auto slash = here.rfind('/');
  return (slash == std::string::npos ? "." : here.substr(0, slash)) + "/libpair_gaunt.so";
}

static lammpsplugin_factory1 *open_library(int lammps_version)
{
  // The classes of another version have another layout: anything could happen.
  if (lammps_version != GAUNT_LAMMPS_VERSION)
    throw std::runtime_error("it was compiled for LAMMPS " + std::to_string(GAUNT_LAMMPS_VERSION) +
                             " and this is LAMMPS " + std::to_string(lammps_version) +
                             ": run gaunt build lammps");
  // Global, for the code generators inside libtorch look symbols up by name; never closed, for
  // libtorch can't be unloaded.
  const auto path = library_path();
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    const char *reason = dlerror();
    throw std::runtime_error("its library can't be loaded: " + std::string(reason ? reason : path) +
                             ". Run gaunt build lammps");
  }
  auto *create = reinterpret_cast<lammpsplugin_factory1 *>(dlsym(library, "gaunt_create_pair"));
  if (!create)
    throw std::runtime_error(path + " is not its library. Run gaunt build lammps --force");
  return create;
}

static void *create_pair(void *pointer)
{
  auto *lmp = static_cast<LAMMPS *>(pointer);
  void *pair = nullptr;
  Gaunt::on_all_ranks(lmp, "pair_style gaunt", [&] { pair = open_library(lmp->num_ver)(pointer); });
  return pair;
}

extern "C" void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
  lammpsplugin_t plugin;
  const bool same = static_cast<LAMMPS *>(lmp)->num_ver == GAUNT_LAMMPS_VERSION;
  plugin.version = same ? static_cast<LAMMPS *>(lmp)->version : "another version";
  plugin.style = "pair";
  plugin.name = "gaunt";
  plugin.info = "Gaunt tensor product models of MACE and NequIP";
  plugin.author = "gaunt_plugin contributors";
  plugin.creator.v1 = &create_pair;
  plugin.handle = handle;
  (*reinterpret_cast<lammpsplugin_regfunc>(regfunc))(&plugin, lmp);
}
