// gaunt_plugin: Gaunt tensor products for interatomic potentials.
// Copyright (C) 2026 gaunt_plugin contributors. SPDX-License-Identifier: GPL-2.0-only

#include "pair_gaunt.h"

#include "atom.h"
#include "comm.h"
#include "error.h"
#include "force.h"
#include "gaunt_model.h"
#include "group.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "on_all_ranks.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <system_error>
#include <utility>

using namespace LAMMPS_NS;

extern "C" void *gaunt_create_pair(void *lmp)
{
  return static_cast<Pair *>(new PairGaunt(static_cast<LAMMPS *>(lmp)));
}

PairGaunt::PairGaunt(LAMMPS *lmp) : Pair(lmp)
{
  single_enable = 0;
  restartinfo = 0;
  one_coeff = 1;
  manybody_flag = 1;
  unit_convert_flag = utils::get_supported_conversions(utils::ENERGY);
  // The virial is summed over edges, which also holds inside pair_style hybrid.
  no_virial_fdotr_compute = 1;
  centroidstressflag = CENTROID_NOTAVAIL;
  // Several styles of a hybrid look at each other's cutoffs for ghosts, see init_one.
  ghostneigh = 1;
}

PairGaunt::~PairGaunt()
{
  if (copymode || !allocated) return;
  memory->destroy(setflag);
  memory->destroy(cutsq);
  memory->destroy(cutghost);
}

void PairGaunt::allocate()
{
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  memory->create(cutghost, n, n, "pair:cutghost");
  for (int i = 0; i < n; ++i)
    for (int j = 0; j < n; ++j) {
      setflag[i][j] = 0;
      cutsq[i][j] = cutghost[i][j] = 0.0;
    }
  allocated = 1;
}

void PairGaunt::settings(int narg, char **arg)
{
  // A variable of the input may have taken its value from the environment of one rank.
  Gaunt::on_all_ranks(lmp, "pair_style gaunt", [&] { read_settings(narg, arg); });
}

void PairGaunt::read_settings(int narg, char **arg)
{
  device = "cpu";
  threads = 0;
  for (int i = 0; i < narg; i += 2) {
    const std::string name = arg[i];
    if (name != "device" && name != "threads")
      throw std::runtime_error("unknown keyword " + name + ": possible are device and threads");
    if (i + 1 == narg) throw std::runtime_error(name + ": the value is missing");
    const std::string value = arg[i + 1];
    if (name == "device") {
      const bool known = value == "cpu" || value == "cuda" || value == "auto" ||
          (utils::strmatch(value, "^cuda:\\d+$") && value.size() < 9);
      if (!known)
        throw std::runtime_error("device " + value + ": possible are cpu, cuda, cuda:N and auto");
      device = value;
    } else {
      threads = utils::is_integer(value) && value.size() < 7 ? std::stoi(value) : 0;
      if (threads < 1)
        throw std::runtime_error("threads " + value + ": it must be a number of at least 1");
    }
  }
}

// LAMMPS takes the first byte of every letter that is not ASCII out of its input. The path of the
// file that is named like this after the same loss.
static std::string with_lost_bytes(const std::string &path)
{
  namespace fs = std::filesystem;
  fs::path found;
  for (const auto &part : fs::path(path)) {
    fs::path next = found / part;
    if (!fs::exists(next)) {
      int matches = 0;
      for (const auto &entry : fs::directory_iterator(found.empty() ? "." : found)) {
        const auto name = entry.path().filename();
        if (utils::utf8_subst(name) != part) continue;
        next = found / name;
        ++matches;
      }
      if (matches > 1)
        throw std::runtime_error("LAMMPS takes what is not ASCII out of its input, and then several "
                                 "files have this name: rename it");
    }
    found = next;
  }
  return found;
}

static std::string read_file(const std::string &name)
{
  auto path = utils::get_potential_file_path(name);
  if (path.empty()) path = utils::has_utf8(name) ? with_lost_bytes(name) : name;
  const std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "rb"), &std::fclose);
  if (!file) throw std::runtime_error("can't read it: " + utils::getsyserror());
  std::string bytes;
  std::error_code unknown;
  const auto size = std::filesystem::file_size(path, unknown);
  if (!unknown) bytes.reserve(size);
  std::vector<char> block(1 << 20);
  while (const auto count = std::fread(block.data(), 1, block.size(), file.get()))
    bytes.append(block.data(), count);
  if (std::ferror(file.get())) throw std::runtime_error("can't read it: " + utils::getsyserror());
  if (bytes.empty()) throw std::runtime_error("it is empty");
  return bytes;
}

// Read a whole file on rank 0 and give it to all.
static std::string read_everywhere(LAMMPS *lmp, const std::string &name, const std::string &path)
{
  constexpr std::int64_t most = 1 << 30;    // MPI counts in int
  std::string bytes;
  Gaunt::on_all_ranks(lmp, name, [&] {
    if (lmp->comm->me == 0) bytes = read_file(path);
  });
  auto size = static_cast<std::int64_t>(bytes.size());
  MPI_Bcast(&size, 1, MPI_INT64_T, 0, lmp->world);
  Gaunt::on_all_ranks(lmp, name, [&] { bytes.resize(size); });
  for (std::int64_t begin = 0; begin < size; begin += most)
    MPI_Bcast(&bytes[begin], static_cast<int>(std::min(most, size - begin)), MPI_BYTE, 0,
              lmp->world);
  return bytes;
}

void PairGaunt::coeff(int narg, char **arg)
{
  const int ntypes = atom->ntypes;
  Gaunt::on_all_ranks(lmp, "pair_style gaunt", [&] {
    if (narg < 3 || std::strcmp(arg[0], "*") != 0 || std::strcmp(arg[1], "*") != 0)
      throw std::runtime_error("it needs pair_coeff * * FILE and an element per atom type");
    if (narg != 3 + ntypes)
      throw std::runtime_error(fmt::format(
          "pair_coeff * * {} names {} elements, but there are {} atom types: name one element "
          "(or NULL) per type",
          arg[2], narg - 3, ntypes));
  });
  if (!allocated) allocate();

  // What LAMMPS leaves of other letters is no text.
  std::string path = arg[2];
  std::replace_if(path.begin(), path.end(), [](unsigned char c) { return c > 127; }, '?');
  const auto name = "pair_style gaunt, file " + path;
  const auto file = read_everywhere(lmp, name, arg[2]);

  // Ranks of one machine share its GPUs.
  MPI_Comm machine;
  int local_rank = 0;
  MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, comm->me, MPI_INFO_NULL, &machine);
  MPI_Comm_rank(machine, &local_rank);
  MPI_Comm_free(&machine);

  std::unique_ptr<Gaunt::Model> loaded;
  std::vector<int> types_of;
  Gaunt::on_all_ranks(lmp, name, [&] {
    loaded = std::make_unique<Gaunt::Model>(file, device, local_rank);
    types_of = map_types(*loaded, arg + 3);
  });
  model = std::move(loaded);
  type_map = std::move(types_of);

  for (int i = 1; i <= ntypes; ++i)
    for (int j = i; j <= ntypes; ++j) setflag[i][j] = type_map[i] >= 0 && type_map[j] >= 0;
  if (comm->me == 0)
    utils::logmesg(lmp, "pair_style gaunt: {}, cutoff {} A, {} layers, {}, on {}{}\n", path,
                   model->cutoff, model->layers, model->dtype, model->device, model->kernels);
}

// The model's type of each LAMMPS type, of which `symbols` has the elements.
std::vector<int> PairGaunt::map_types(const Gaunt::Model &of, char **symbols) const
{
  std::vector<int> types(atom->ntypes + 1, -1);
  for (int type = 1; type <= atom->ntypes; ++type) {
    const std::string symbol = symbols[type - 1];
    if (symbol == "NULL") continue;
    const auto place = std::find(of.elements.begin(), of.elements.end(), symbol);
    if (place == of.elements.end()) {
      std::string known;
      for (const auto &element : of.elements) known += " " + element;
      throw std::runtime_error(fmt::format("it doesn't know element {} of atom type {}; it knows{}",
                                           symbol, type, known));
    }
    types[type] = static_cast<int>(place - of.elements.begin());
  }
  if (*std::max_element(types.begin(), types.end()) < 0)
    throw std::runtime_error("pair_coeff maps no atom type to an element");
  return types;
}

// Atoms that LAMMPS takes out of neighbour lists because a bond joins them would be missing from
// the model's sums.
void PairGaunt::check_bonds()
{
  if (atom->molecular == Atom::ATOMIC) return;
  bool excluded[4] = {};
  bool any = false;
  for (int k = 1; k <= 3; ++k) {
    excluded[k] = force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0;
    any = any || excluded[k];
  }
  if (!any) return;
  int found = atom->molecular == Atom::TEMPLATE;
  if (!found && atom->nspecial) {
    for (int i = 0; i < atom->nlocal; ++i) {
      if (type_map[atom->type[i]] < 0) continue;
      const int *upto = atom->nspecial[i];    // cumulative
      found = found || (excluded[1] && upto[0] > 0) || (excluded[2] && upto[1] > upto[0]) ||
          (excluded[3] && upto[2] > upto[1]);
    }
  }
  int anywhere = 0;
  MPI_Allreduce(&found, &anywhere, 1, MPI_INT, MPI_MAX, world);
  if (anywhere)
    error->all(FLERR,
               "special_bonds takes bonded atoms out of the neighbor lists, but pair_style gaunt "
               "needs all neighbors: use special_bonds lj/coul 1.0 1.0 1.0 or define no bonds");
}

// comm_modify group, which Comm keeps to itself.
struct GhostGroup : Comm {
  static int of(const Comm *comm) { return comm->*(&GhostGroup::bordergroup); }
};

// Commands that take other pairs out of the lists, or leave ghosts away: the same.
void PairGaunt::check_lists()
{
  if (neighbor->includegroup || GhostGroup::of(comm))
    error->all(FLERR,
               "pair_style gaunt needs neighbors and ghosts of all atoms: leave out neigh_modify "
               "include and comm_modify group");
  bool found = false;
  for (int k = 0; k < neighbor->nex_type; ++k)
    found = found || (type_map[neighbor->ex1_type[k]] >= 0 && type_map[neighbor->ex2_type[k]] >= 0);
  int mine = 0, groups = 0;    // bits of the groups with atoms of the model
  for (int i = 0; i < atom->nlocal; ++i)
    if (type_map[atom->type[i]] >= 0) mine |= atom->mask[i];
  MPI_Allreduce(&mine, &groups, 1, MPI_INT, MPI_BOR, world);
  const int *bit = group->bitmask;
  for (int k = 0; k < neighbor->nex_group; ++k)
    found = found ||
        ((groups & bit[neighbor->ex1_group[k]]) && (groups & bit[neighbor->ex2_group[k]]));
  for (int k = 0; k < neighbor->nex_mol; ++k)
    found = found || (groups & bit[neighbor->ex_mol_group[k]]);
  if (found)
    error->all(FLERR,
               "neigh_modify exclude takes atoms of the model out of the neighbor lists, but "
               "pair_style gaunt needs all neighbors: use neigh_modify exclude none");
}

// An owned atom may have left its subdomain by half the skin, and so may the last ghost.
double PairGaunt::needed_comm_cutoff() const
{
  return model->layers * model->cutoff + neighbor->skin;
}

void PairGaunt::init_style()
{
  if (!model) error->all(FLERR, "pair_style gaunt needs a pair_coeff command before it runs");
  if (!atom->tag_enable) error->all(FLERR, "pair_style gaunt needs atom IDs (atom_modify id yes)");
  if (!force->newton_pair) error->all(FLERR, "pair_style gaunt needs newton pair on");
  if (std::strcmp(update->unit_style, "metal") == 0)
    energy_unit = 1.0;
  else if (std::strcmp(update->unit_style, "real") == 0)
    energy_unit = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "pair_style gaunt needs units metal or real, not {}", update->unit_style);
  check_bonds();
  check_lists();

  // On one rank every ghost is the image of an atom whose neighbours are at hand.
  needs_ghosts = comm->nprocs > 1 && model->layers > 1;
  neighbor->add_request(
      this, NeighConst::REQ_FULL | (needs_ghosts ? NeighConst::REQ_GHOST : NeighConst::REQ_DEFAULT));
  const double needed = needed_comm_cutoff();
  // LAMMPS has no lists of ghosts for several kinds of cutoffs.
  const bool several = neighbor->style != Neighbor::BIN && neighbor->style != Neighbor::NSQ;
  if (needs_ghosts && (several || comm->mode != Comm::SINGLE))
    error->all(FLERR,
               "pair_style gaunt needs neighbor style bin (or nsq) and comm_modify mode single cutoff "
               "{} on several ranks",
               needed);
  if (needs_ghosts && comm->cutghostuser < needed) {
    comm->cutghostuser = needed;
    if (comm->me == 0)
      utils::logmesg(lmp, "pair_style gaunt: {} layers need comm_modify cutoff {}, set\n",
                     model->layers, needed);
  }
}

double PairGaunt::init_one(int i, int j)
{
  cutghost[i][j] = cutghost[j][i] = model->cutoff;
  return model->cutoff;
}

void PairGaunt::setup()
{
  if (!needs_ghosts) return;
  const double needed = needed_comm_cutoff();
  if (comm->get_comm_cutoff() < needed * (1.0 - 1e-12))
    error->all(FLERR,
               "The communication cutoff {} is too short for {} layers of {} Angstrom: use "
               "comm_modify cutoff {}",
               comm->get_comm_cutoff(), model->layers, model->cutoff, needed);
}

// Of `all` local and ghost atoms.
Gaunt::Graph PairGaunt::make_graph(int all)
{
  tags.resize(all);
  types.resize(all);
  for (int i = 0; i < all; ++i) {
    tags[i] = atom->tag[i];
    types[i] = type_map[atom->type[i]];
  }
  // Monte Carlo fixes try a deletion by excluding an atom from all others: it isn't there.
  for (int k = 0; k < neighbor->nex_group; ++k) {
    if (neighbor->ex2_group[k] != 0) continue;    // group all
    const int gone = group->bitmask[neighbor->ex1_group[k]];
    for (int i = 0; i < all; ++i)
      if (atom->mask[i] & gone) types[i] = -1;
  }
  Gaunt::Atoms atoms;
  atoms.num_owned = list->inum;
  atoms.owned = list->ilist;
  atoms.x = atom->x;
  atoms.tag = tags.data();
  atoms.type = types.data();
  atoms.num_neighbors = list->numneigh;
  atoms.neighbors = list->firstneigh;
  atoms.neighbor_mask = NEIGHMASK;
  return Gaunt::build_graph(atoms, model->cutoff, model->layers);
}

void PairGaunt::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);

  const int all = atom->nlocal + atom->nghost;
  Gaunt::Graph graph;
  Gaunt::Result result;
  std::string failure;
  try {
    graph = make_graph(all);
    if (graph.num_owned > 0)
      result = model->evaluate(graph, threads > 0 ? threads : comm->nthreads);
  } catch (const std::bad_alloc &) {
    failure = fmt::format("out of memory while collecting the edges of {} atoms", all);
  } catch (const std::exception &problem) {
    failure = problem.what();
  }
  if (!failure.empty()) error->one(FLERR, "pair_style gaunt: {}", failure);
  bytes = 12.0 * all + 16.0 * graph.types.size() + 64.0 * graph.senders.size();

  for (std::int64_t n = 0; n < graph.num_owned; ++n) {
    const double energy = energy_unit * result.energies[n];
    if (eflag_global) eng_vdwl += energy;
    if (eflag_atom) eatom[graph.atoms[n]] += energy;
  }

  // The energy depends on d = x_receiver - x_sender, so the forces are -g and +g with g = dE/dd,
  // and the virial sum(x f) is -d g. Ghosts hand their share back, as newton pair on means.
  double **f = atom->f;
  for (std::size_t e = 0; e < graph.senders.size(); ++e) {
    const int sender = graph.atoms[graph.senders[e]];
    const int receiver = graph.atoms[graph.receivers[e]];
    const double *d = &graph.vectors[3 * e];
    double g[3];
    for (int k = 0; k < 3; ++k) {
      g[k] = energy_unit * result.gradients[3 * e + k];
      f[sender][k] += g[k];
      f[receiver][k] -= g[k];
    }
    if (!vflag_either) continue;
    // The sum over all edges is symmetric, single edges need not be.
    const double v[6] = {-d[0] * g[0],
                         -d[1] * g[1],
                         -d[2] * g[2],
                         -0.5 * (d[0] * g[1] + d[1] * g[0]),
                         -0.5 * (d[0] * g[2] + d[2] * g[0]),
                         -0.5 * (d[1] * g[2] + d[2] * g[1])};
    for (int k = 0; k < 6; ++k) {
      if (vflag_global) virial[k] += v[k];
      if (vflag_atom) {
        vatom[sender][k] += 0.5 * v[k];
        vatom[receiver][k] += 0.5 * v[k];
      }
    }
  }
}

double PairGaunt::memory_usage() { return Pair::memory_usage() + bytes; }

void *PairGaunt::extract(const char *name, int &dim)
{
  dim = 0;
  return std::strcmp(name, "cutoff") == 0 && model ? &model->cutoff : nullptr;
}
