// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

// The file that LAMMPS loads at every start. It stays small: libtorch is opened when an input
// asks for `pair_style gaunt`, so other simulations neither wait for it nor share their process
// with it.
#include "lammps_plugin_api.h"

#include "error.h"
#include "lammps.h"

#include <dlfcn.h>
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

static void *create_pair(void *pointer)
{
  auto *lmp = static_cast<LAMMPS *>(pointer);
  // The classes of another version have another layout: anything could happen.
  if (lmp->num_ver != GAUNT_LAMMPS_VERSION)
    lmp->error->all(FLERR,
                    "pair_style gaunt was compiled for LAMMPS {} and this is LAMMPS {}: "
                    "run gaunt-lammps build",
                    GAUNT_LAMMPS_VERSION, lmp->num_ver);
  // Global, for the code generators inside libtorch look symbols up by name; never closed, for
  // libtorch can't be unloaded.
  const auto path = library_path();
  void *library = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (!library) {
    const char *reason = dlerror();
    lmp->error->all(FLERR, "pair_style gaunt can't load its library: {}. Run gaunt-lammps build",
                    reason ? reason : path);
  }
  auto *create = reinterpret_cast<lammpsplugin_factory1 *>(dlsym(library, "gaunt_create_pair"));
  if (!create) lmp->error->all(FLERR, "{} is not the library of pair_style gaunt", path);
  return create(pointer);
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
